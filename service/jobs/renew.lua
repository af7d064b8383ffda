-- Prolong the lease by arg.lease; says whether the job is still the caller's, or to be canceled.
if not held() then
  return 'lost'
end
redis.call('ZADD', RUNNING, 'XX', seconds(now() + arg.lease), arg.id)
if get('cancel_requested') == '1' then
  return 'cancel'
end
return 'held'
