-- Objects in stores that the subject's rows own: deleted before their rows, in the rows' own transaction.

ALTER TABLE pgreeve.erasure_step
    ADD COLUMN objects         bigint NOT NULL DEFAULT 0,  -- how many are gone from their store
    ADD COLUMN object_versions bigint NOT NULL DEFAULT 0;  -- of how many the store keeps an older version
