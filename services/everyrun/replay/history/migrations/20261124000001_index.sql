-- migrate:up
create schema if not exists everyrun_index;

comment on schema everyrun_index is
    'An index of the events that mention each input, run and batch. The replay service builds this schema from the log. If you drop the schema, the replay service builds it again.';

create table positions (
    topic text collate "C" not null,
    partition int not null,
    next_offset bigint not null,
    cluster_id text not null,
    primary key (topic, partition)
);
comment on column positions.topic is 'The topic, without EVERYRUN_TOPIC_PREFIX.';
comment on column positions.partition is 'The number of the partition.';
comment on column positions.next_offset is 'The offset of the next record to index.';
comment on column positions.cluster_id is 'The id of the Kafka cluster.';
comment on table positions is 'The progress of the index in each partition, updated in the transaction that adds the events.';

create table places (
    id bigint not null,
    place bigint not null
);
comment on column places.id is 'A number that is computed from the id of an input, run or batch that the event mentions.';
comment on column places.place is 'Topic, partition and offset of the event, encoded as one number.';
comment on table places is 'For each id, where the log has the events that mention it. Ids and positions are encoded as numbers, as everyrun/replay/history/event_index_keys.py describes.';
create index places_id on places (id);

create table batch_places (
    id bigint not null,
    places bigint[] not null
);
comment on column batch_places.id is 'A number that is computed from the batchId.';
comment on column batch_places.places is 'Topic, partition and offset of each event, encoded as one number.';
comment on table batch_places is 'For each batch, where the log has the events that describe its runs. A batch can have several rows.';
create index batch_places_id on batch_places (id);

-- migrate:down
drop schema everyrun_index cascade;
