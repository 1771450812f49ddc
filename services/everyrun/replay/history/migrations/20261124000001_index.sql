-- migrate:up
create schema if not exists everyrun_index;

comment on schema everyrun_index is
    'An index of the events that mention each input, run and batch. The replay service makes it from the log; it may be dropped, and is made again.';

create table positions (
    topic text collate "C" not null,
    partition int not null,
    next_offset bigint not null,
    cluster_id text not null,
    primary key (topic, partition)
);
comment on column positions.topic is 'The topic, without prefix.';
comment on column positions.partition is 'The partition.';
comment on column positions.next_offset is 'The offset of the first record that is not indexed yet.';
comment on column positions.cluster_id is 'The id of the Kafka cluster.';
comment on table positions is 'The progress of the index in each partition, updated in the transaction that adds the events.';

create table places (
    id bigint not null,
    place bigint not null
);
comment on column places.id is 'A number made from an id that the event mentions.';
comment on column places.place is 'Topic, partition and offset of the event, as one number.';
comment on table places is 'The location of each event that mentions an id, both as numbers: see everyrun/replay/history/event_index_keys.py.';
create index places_id on places (id);

create table batch_places (
    id bigint not null,
    places bigint[] not null
);
comment on column batch_places.id is 'A number made from the batchId.';
comment on column batch_places.places is 'Topic, partition and offset of each event, as one number.';
comment on table batch_places is 'The locations of observations of a batch''s runs; several rows per batch.';
create index batch_places_id on batch_places (id);

-- migrate:down
drop schema everyrun_index cascade;
