INSERT INTO payments
SELECT id,
       issued_at + a * interval '20 minutes',
       id,
       customer_id,
       4000 * party_size,
       'JPY',
       method::payment_method,
       (CASE state WHEN 'cancelled' THEN 'refunded' ELSE 'captured' END)::payment_state,
       CASE method WHEN 'card' THEN lpad((b * 9999)::int::text, 4, '0') END,
       CASE WHEN method <> 'cash' THEN inet '100.64.0.0' + (b * 4194303)::bigint END,
       jsonb_build_object('terminal', 'T' || (a * 400)::int, 'attempts', 1 + (b * b * 3)::int, '3ds', a < 0.6)
FROM (SELECT *, CASE WHEN dice < 0.52 THEN 'card' WHEN dice < 0.74 THEN 'qr' WHEN dice < 0.86 THEN 'konbini'
                     WHEN dice < 0.94 THEN 'transit_ic' ELSE 'cash' END AS method
      FROM (SELECT *, random() AS a, random() AS b, random() AS dice FROM entry_passes WHERE state <> 'held' ORDER BY id) AS sold
     ) AS paid
