-- Opens every script. KEYS are keys.of_job(id), or keys.of_claim(token) for the script claim;
-- ARGV[1] is a JSON object of the arguments, ARGV[2] bytes that some scripts store. LEGAL,
-- PRIORITIES, ARTIFACT, JOB_OF and EVENTS_OF stand above, written by scripts.py from their one
-- place. Scripts return before they write, or write everything.
local RUNNING, CANCELED, QUEUED = KEYS[1], KEYS[2], {}
for place, priority in ipairs(PRIORITIES) do
  QUEUED[priority] = KEYS[2 + place]
end
local own = 2 + #PRIORITIES
local JOB, EVENTS, INPUTS = KEYS[own + 1], KEYS[own + 2], KEYS[own + 3]
local arg = cjson.decode(ARGV[1])

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1e6
end

local function seconds(time)
  return string.format('%.6f', time)
end

local function get(field)
  return redis.call('HGET', JOB, field)
end

-- The queue that the job waits in, whenever it waits.
local function queue()
  return QUEUED[get('priority')]
end

local function may_become(target)
  local status = get('status')
  return status and LEGAL[status][target]
end

-- Whether the caller still owns the job: the fence in front of every write of a worker.
local function held()
  return get('status') == 'running' and get('token') == arg.token
end

local function event(kind, data)
  return redis.call('XADD', EVENTS, 'MAXLEN', '~', arg.stream_length, '*', 'type', kind, 'data', data)
end

-- End the job: status, document, the one terminal event, and a lifetime for all that it owns.
local function finish(target, field, document, data)
  local last = event(target, data)
  redis.call('HSET', JOB, 'status', target, 'finished', seconds(now()), 'last_event', last)
  if field then
    redis.call('HSET', JOB, field, document)
  end
  redis.call('ZREM', queue(), arg.id)
  redis.call('ZREM', RUNNING, arg.id)
  redis.call('SREM', CANCELED, arg.id)
  redis.call('UNLINK', INPUTS)
  redis.call('EXPIRE', JOB, arg.ttl)
  redis.call('EXPIRE', EVENTS, arg.ttl)
  for _, name in ipairs(redis.call('HKEYS', JOB)) do
    if string.sub(name, 1, #ARTIFACT) == ARTIFACT then
      redis.call('EXPIRE', JOB .. ':' .. name, arg.ttl)
    end
  end
end

-- Put a running job back where it stood in its queue, for whichever worker claims it next.
local function requeue(attempt, reason)
  redis.call('HSET', JOB, 'status', 'queued', 'attempt', attempt)
  redis.call('HDEL', JOB, 'token')
  redis.call('ZREM', RUNNING, arg.id)
  redis.call('ZADD', queue(), get('created'), arg.id)
  event('retrying', cjson.encode({attempt = attempt, reason = reason}))
end
