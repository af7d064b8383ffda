-- Count a subscriber of the job's events: arg.change, 1 when one comes, -1 when one leaves; .grace:
-- seconds after which a job that is attached to its subscribers, and has none, is abandoned.
local status = get('status')
if not status or not next(LEGAL[status]) then
  return 0
end
local watchers = redis.call('HINCRBY', WATCHERS, ID, arg.change)
if watchers > 0 then
  redis.call('ZREM', ABANDONED, ID)
else
  redis.call('HDEL', WATCHERS, ID)
  if get('attached') then
    redis.call('ZADD', ABANDONED, seconds(now() + arg.grace), ID)
  end
end
return watchers
