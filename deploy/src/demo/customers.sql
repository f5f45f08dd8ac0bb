INSERT INTO customers
SELECT md5('customer' || i)::uuid,
       given[1 + (a * 11)::int] || ' ' || family[1 + (b * 11)::int],
       'visitor' || i || '@example.com',
       CASE WHEN resident THEN 'JP' ELSE (ARRAY['US', 'TW', 'FR', 'AU', 'KR', 'DE', 'GB', 'TH'])[1 + (c * 7)::int] END,
       CASE WHEN a < 0.95 THEN date '1945-01-01' + (b * 22000)::int END,
       resident,
       CASE WHEN resident THEN ARRAY['ja'] WHEN c < 0.3 THEN ARRAY['en', 'fr'] ELSE ARRAY['en'] END,
       jsonb_build_object('phone', '+81-90-0000-' || lpad((c * 9999)::int::text, 4, '0'), 'newsletter', b < 0.3,
                          'emergency', jsonb_build_object('name', given[1 + (c * 11)::int], 'told', a > 0.1)),
       CASE WHEN c < 0.9 THEN inet '100.64.0.0' + (a * 4194303)::bigint ELSE inet '2001:db8::1' + (b * 1e9)::bigint END,
       joined, joined + c * interval '20 days'
FROM (SELECT i, random() AS a, random() AS b, random() AS c, random() < 0.45 AS resident,
             timestamptz '2026-05-01 09:00+09' + random() * interval '60 days' AS joined
      FROM generate_series(1, {customers}) AS i) AS dice,
     (SELECT ARRAY['Aiko', 'Haruto', 'Yui', 'Sora', 'Emma', 'Louis', 'Mei-Ling', 'Noah', 'Somchai', 'Zoë', 'Jun', 'Ana'] AS given,
             ARRAY['Satō', 'Suzuki', 'Tanaka', '山田', 'Müller', 'O''Brien', 'Nguyễn', 'Lee', 'Dubois', 'Chen', 'Smith', 'Fuji'] AS family) AS names
