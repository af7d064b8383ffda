-- Remove a job and all that it owns, whatever it is doing: a worker that runs it loses it.
local status = get('status')
if not status then
  return 0
end
forget()
if next(LEGAL[status]) then
  add('owner:' .. get('owner'), -cost())
end
redis.call('ZREM', WEBHOOKS, ID)
redis.call('ZREM', string.format(OWNED_OF, get('owner')), ID)
redis.call('UNLINK', INPUTS, EVENTS, PREVIEWS, unpack(artifacts()))
redis.call('UNLINK', JOB)
return 1
