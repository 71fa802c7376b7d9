-- Early stopping: a unit may end before the epochs of its settings, and an earlier epoch than its last may count. Written
-- in the transaction that accepts its last result, so that whoever sees the one sees the other.
ALTER TABLE unit ADD COLUMN epoch integer;  -- of its results the one that counts, once all are there; NULL: the last

CREATE OR REPLACE FUNCTION state_at_rest(wanted bigint) RETURNS unit_state LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN EXISTS (
    SELECT 1 FROM unit u JOIN trial t ON t.id = u.trial JOIN result r ON r.unit = u.id
    WHERE u.id = wanted AND (u.epoch IS NOT NULL OR r.epoch = CAST(t.settings->>'epochs' AS integer))
  ) THEN CAST('done' AS unit_state) ELSE CAST('waiting' AS unit_state) END
$$;
