-- migrate:up
create schema if not exists everyrun_index;

comment on schema everyrun_index is
    'Where in the log each input, run and batch is spoken of. Made from the log by the replay service; drop it, and it is made again.';

create table positions (
    topic text collate "C" not null,
    partition int not null,
    next_offset bigint not null,
    cluster_id text not null,
    primary key (topic, partition)
);
comment on column positions.topic is 'The topic, without its prefix.';
comment on column positions.partition is 'The partition.';
comment on column positions.next_offset is 'The offset of the first record that is not indexed yet.';
comment on column positions.cluster_id is 'The Kafka cluster that it is of.';
comment on table positions is 'How far each partition is indexed; moved in the same transaction as the places.';

create table places (
    id bigint not null,
    place bigint not null
);
comment on column places.id is 'A number made from the id that the event speaks of.';
comment on column places.place is 'Topic, partition and offset of the event, as one number.';
comment on table places is 'An event that speaks of an id. Of both there is a number: see everyrun/replay/history/event_index_keys.py.';
create index places_id on places (id);

create table batch_places (
    id bigint not null,
    places bigint[] not null
);
comment on column batch_places.id is 'A number made from the batchId.';
comment on column batch_places.places is 'Topic, partition and offset of each, as one number.';
comment on table batch_places is 'The observations of a batch''s runs, some at a time.';
create index batch_places_id on batch_places (id);

-- migrate:down
drop schema everyrun_index cascade;
