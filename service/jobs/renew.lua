-- Prolong the lease by arg.lease; says whether the job is still the caller's.
if not held() then
  return 'lost'
end
redis.call('ZADD', RUNNING, 'XX', seconds(now() + arg.lease), ID)
return 'held'
