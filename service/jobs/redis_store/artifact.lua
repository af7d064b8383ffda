-- Enter an artifact: arg.name, arg.media_type, bytes in ARGV[2] or arg.file, the path of theirs.
if not held() then
  return refusal()
end
local name = ARTIFACT .. arg.name
if arg.file then
  redis.call('HSET', JOB, FILE .. arg.name, arg.file)
else
  redis.call('SET', JOB .. ':' .. name, ARGV[2]) -- until its job ends, and a lifetime longer
  redis.call('HDEL', JOB, FILE .. arg.name)
end
redis.call('HSET', JOB, name, arg.media_type)
return 1
