INSERT INTO refunds
SELECT md5('refund' || id)::uuid, id, paid_at, amount,
       (ARRAY['trail closed', 'typhoon', 'illness', 'changed plans'])[1 + (id % 4)], paid_at + interval '1 day' * (1 + id % 3)
FROM payments WHERE state = 'refunded'
