-- Opens every script. KEYS are keys.SHARED, then the claim's own in the script claim; ARGV[1] is a
-- JSON object of the arguments (.id: the job that the script is about), ARGV[2] bytes that some
-- scripts store. LEGAL, PRIORITIES, ARTIFACT and the formats of keys stand above, written by
-- scripts.py from their one place. Scripts return before they write, or write everything.
local RUNNING, CANCELED, DEADLINES = KEYS[1], KEYS[2], KEYS[3]
local ID, JOB, EVENTS, INPUTS
local arg = cjson.decode(ARGV[1])

-- The job that everything below is about.
local function look_at(id)
  ID, JOB, EVENTS = id, string.format(JOB_OF, id), string.format(EVENTS_OF, id)
  INPUTS = string.format(INPUTS_OF, id)
end

if arg.id then
  look_at(arg.id)
end

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
  return string.format(QUEUE_OF, get('priority'), get('digest'))
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
  redis.call('ZREM', queue(), ID)
  redis.call('ZREM', RUNNING, ID)
  redis.call('ZREM', DEADLINES, ID)
  redis.call('HDEL', CANCELED, ID)
  redis.call('UNLINK', INPUTS)
  redis.call('EXPIRE', JOB, arg.ttl)
  redis.call('EXPIRE', EVENTS, arg.ttl)
  for _, name in ipairs(redis.call('HKEYS', JOB)) do
    if string.sub(name, 1, #ARTIFACT) == ARTIFACT then
      redis.call('EXPIRE', JOB .. ':' .. name, arg.ttl)
    end
  end
end

-- End the job because somebody asked, or because its deadline has passed.
local function finish_canceled(reason)
  local target = reason == 'deadline' and get('status') == 'queued' and 'aborted' or 'canceled'
  redis.call('HSET', JOB, 'cancel_reason', reason)
  finish(target, nil, nil, cjson.encode({reason = reason}))
end

-- Ask the owner of the running job to stop; the first reason stands.
local function ask_to_stop(reason)
  redis.call('HSETNX', JOB, 'cancel_reason', reason)
  redis.call('HSET', CANCELED, ID, get('cancel_reason'))
end

local function overdue(time)
  local deadline = get('deadline')
  return deadline and tonumber(deadline) <= time
end

-- Put a running job back where it stood in its queue, for whichever worker claims it next.
local function requeue(attempt, reason)
  redis.call('HSET', JOB, 'status', 'queued', 'attempt', attempt)
  redis.call('HDEL', JOB, 'token')
  redis.call('ZREM', RUNNING, ID)
  redis.call('ZADD', queue(), get('created'), ID)
  event('retrying', cjson.encode({attempt = attempt, reason = reason}))
end
