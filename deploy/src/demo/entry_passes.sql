INSERT INTO entry_passes
SELECT i,
       md5('customer' || (1 + floor(a * {buyers}))::bigint)::uuid,
       (CASE WHEN b < 0.58 THEN 'yoshida' WHEN b < 0.80 THEN 'fujinomiya' WHEN b < 0.92 THEN 'subashiri' ELSE 'gotemba' END)::trail,
       (CASE WHEN i % 33 = 0 THEN 'held' WHEN i % 25 = 7 THEN 'cancelled' WHEN c < 0.75 THEN 'entered' ELSE 'paid' END)::pass_state,
       (issued AT TIME ZONE 'Asia/Tokyo')::date + 1 + (a * 6)::int,
       1 + floor(b * b * 6),
       c < 0.35,
       CASE WHEN c < 0.35 THEN ARRAY['headlamp', 'rain jacket', 'oxygen'] WHEN a < 0.5 THEN ARRAY['rain jacket'] ELSE '{}' END,
       CASE WHEN c < 0.75 THEN jsonb_build_object('gate', 1 + (b * 3)::int, 'staff', 'G' || (a * 99)::int, 'helmet', b < 0.2) END,
       issued,
       CASE WHEN i % 33 <> 0 AND i % 25 <> 7 AND c < 0.75 THEN issued + interval '1 day' + a * interval '5 days' END
FROM (SELECT i, random() AS a, random() AS b, random() AS c,
             timestamptz '2026-07-01 00:00+09' + random() * interval '69 days' AS issued
      FROM generate_series(1, {passes}) AS i) AS dice
