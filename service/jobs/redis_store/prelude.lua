-- Opens every script. KEYS are keys.SHARED; ARGV[1] is a JSON object of the arguments (.id: the job
-- that the script is about), ARGV[2] bytes that some scripts store. LEGAL, PRIORITIES, ARTIFACT and
-- the formats of keys stand above, written by scripts.py from their one place. Scripts return
-- before they write, or write everything. Redis refuses a script's first write when its memory is
-- full, and lets the later ones pass: what ends a job, or frees it, begins with a removal.
local RUNNING, CANCELED, DEADLINES, TOTALS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local WATCHERS, ABANDONED, WEBHOOKS, COUNTS = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local ID, JOB, EVENTS, INPUTS, PREVIEWS
local arg = cjson.decode(ARGV[1])

-- The job that everything below is about.
local function look_at(id)
  ID, JOB, EVENTS = id, string.format(JOB_OF, id), string.format(EVENTS_OF, id)
  INPUTS, PREVIEWS = string.format(INPUTS_OF, id), string.format(PREVIEWS_OF, id)
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

local function may_become(target)
  local status = get('status')
  return status and LEGAL[status][target]
end

local function event(kind, data)
  return redis.call('XADD', EVENTS, 'MAXLEN', '~', arg.stream_length, '*', 'type', kind, 'data', data)
end

-- Counts what happens, for operators; nothing else depends on it.
local function count(...)
  redis.call('HINCRBY', COUNTS, cjson.encode({...}), 1)
end

-- Totals: how many jobs wait, and row-calls by queue, by running checkpoint and by owner.

local function add(field, amount)
  if redis.call('HINCRBY', TOTALS, field, string.format('%d', amount)) <= 0 then
    redis.call('HDEL', TOTALS, field)
  end
end

local function cost()
  return tonumber(get('rows')) * tonumber(get('calls'))
end

-- The queue that the job waits in, whenever it waits: it is also the name of its total.
local function queue()
  return string.format(QUEUE_OF, get('priority'), get('digest'))
end

local function enter_queue(score)
  redis.call('ZADD', queue(), score, ID)
  add('jobs', 1)
  add(queue(), cost())
end

local function leave_queue()
  if redis.call('ZREM', queue(), ID) == 1 then
    add('jobs', -1)
    add(queue(), -cost())
  end
end

-- Leases. The claim's key lives as long as the lease, since prolonging it needs no memory; the
-- index of the running jobs says when to look again.

local function running()
  return string.format(RUNNING_OF, get('digest'))
end

local function begin_lease()
  redis.call('SET', string.format(CLAIM_OF, arg.token), ID, 'PX', math.ceil(arg.lease * 1000))
  redis.call('ZADD', RUNNING, seconds(now() + arg.lease), ID)
  add(running(), cost())
end

local function prolong_lease()
  redis.call('PEXPIRE', string.format(CLAIM_OF, arg.token), math.ceil(arg.lease * 1000))
  redis.pcall('ZADD', RUNNING, 'XX', seconds(now() + arg.lease), ID)
end

local function end_lease()
  if redis.call('ZREM', RUNNING, ID) == 1 then
    add(running(), -cost())
  end
end

local function leased()
  local token = get('token')
  return token and redis.call('EXISTS', string.format(CLAIM_OF, token)) == 1
end

-- Whether the caller still owns the job: the fence in front of every write of a worker.
local function held()
  return get('status') == 'running' and get('token') == arg.token
end

-- What a worker's script gives that may not write: 0 where another owns the job now, or may; -1
-- where it was deleted.
local function refusal()
  return get('status') and 0 or -1
end

-- Take the job out of everything but its own keys.
local function forget()
  leave_queue()
  end_lease()
  redis.call('ZREM', DEADLINES, ID)
  redis.call('ZREM', ABANDONED, ID)
  redis.call('HDEL', CANCELED, ID)
  redis.call('HDEL', WATCHERS, ID)
end

local function artifacts()
  local found = {}
  for _, name in ipairs(redis.call('HKEYS', JOB)) do
    if string.sub(name, 1, #ARTIFACT) == ARTIFACT then
      table.insert(found, JOB .. ':' .. name)
    end
  end
  return found
end

-- End the job: status, document, the one terminal event, and a lifetime for all that it owns.
local function finish(target, field, document, data)
  forget()
  add('owner:' .. get('owner'), -cost())
  count('ended', get('operation'), get('model'), target)
  local last = event(target, data)
  redis.call('HSET', JOB, 'status', target, 'finished', seconds(now()), 'last_event', last)
  if field then
    redis.call('HSET', JOB, field, document)
  end
  if get('webhook') then
    redis.call('ZADD', WEBHOOKS, seconds(now()), ID)
  end
  redis.call('UNLINK', INPUTS)
  for _, key in ipairs({JOB, EVENTS, PREVIEWS, unpack(artifacts())}) do
    redis.call('EXPIRE', key, arg.ttl)
  end
end

-- End the job because somebody asked, or because its deadline has passed.
local function finish_canceled(reason)
  local target = reason == 'deadline' and get('status') == 'queued' and 'aborted' or 'canceled'
  finish(target, 'cancel_reason', reason, cjson.encode({reason = reason}))
end

-- Ask the owner of the running job to stop; the first reason stands.
local function ask_to_stop(reason)
  redis.call('ZREM', ABANDONED, ID)
  redis.call('HSETNX', JOB, 'cancel_reason', reason)
  redis.call('HSET', CANCELED, ID, get('cancel_reason'))
end

local function overdue(time)
  local deadline = get('deadline')
  return deadline and tonumber(deadline) <= time
end

-- Put a running job back where it stood in its queue, for whichever worker claims it next.
local function requeue(attempt, reason)
  end_lease()
  redis.call('HSET', JOB, 'status', 'queued', 'attempt', attempt)
  redis.call('HDEL', JOB, 'token')
  enter_queue(get('created'))
  event('retrying', cjson.encode({attempt = attempt, reason = reason}))
end
