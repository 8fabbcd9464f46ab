-- What every transaction on rows of a user's table asks before and after its work. As functions, so that
-- a short one can ask together with what it does, and a refusal ends the transaction by itself.

-- Holds the fence, keeps new holds out where `hold_class` tells their lock, and makes the settings of the
-- transaction. No statement may run longer than `most_ms`, nor than the session allows.
-- PGR01: the epoch is over.
CREATE FUNCTION pgreeve.admit(the_epoch bigint, hold_class integer, most_ms bigint, names text[], settings text[],
                              OUT wal text, OUT timeout_ms bigint)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM pgreeve.leader l WHERE l.epoch = the_epoch FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another pgreeve has taken over' USING ERRCODE = 'PGR01';
    END IF;
    IF hold_class IS NOT NULL THEN
        PERFORM pg_catalog.pg_advisory_xact_lock_shared(hold_class, 1);
    END IF;
    wal := pg_catalog.pg_current_wal_insert_lsn();
    timeout_ms := least(most_ms, nullif(
        (extract(epoch FROM pg_catalog.current_setting('statement_timeout')::interval) * 1000)::bigint, 0));
    PERFORM pg_catalog.set_config(s.name, s.value, true)
    FROM unnest(names || 'statement_timeout'::text, settings || timeout_ms::text) AS s (name, value);
END $$;

-- Writes the batch down, if it did something, and tells what the transaction has been to others: how many
-- sessions wait for it, and how many bytes of WAL were written since the WAL stood at `since`.
-- PGR02: the holds that stand are not those that the transaction knows of.
CREATE FUNCTION pgreeve.record_batch(the_run uuid, the_relation text, the_rows bigint, the_low text, the_high text,
                                     the_milliseconds integer, since text, known_holds uuid[],
                                     OUT waiters bigint, OUT wal bigint)
LANGUAGE plpgsql AS $$
BEGIN
    IF the_rows > 0 THEN
        IF known_holds IS DISTINCT FROM
           ARRAY(SELECT h.hold_id FROM pgreeve.hold h WHERE h.released_at IS NULL ORDER BY h.hold_id) THEN
            RAISE EXCEPTION 'a legal hold was placed or released' USING ERRCODE = 'PGR02';
        END IF;
        INSERT INTO pgreeve.run_batch (run_id, seq, relation, rows, low, high, milliseconds)
        SELECT the_run, coalesce(max(b.seq), 0) + 1, the_relation, the_rows, the_low, the_high, the_milliseconds
        FROM pgreeve.run_batch b WHERE b.run_id = the_run;
    END IF;
    SELECT count(*) INTO waiters FROM pg_catalog.pg_locks l
    WHERE NOT l.granted AND pg_catalog.pg_backend_pid() = ANY (pg_catalog.pg_blocking_pids(l.pid));
    wal := pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_insert_lsn(), since::pg_catalog.pg_lsn)::bigint;
END $$;
