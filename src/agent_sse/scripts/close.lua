-- Erase a session, all but its audit. A short-lived tombstone tells streams that missed the message.
-- KEYS    as in _permissions.lua, and KEYS[11] streams (hash)
-- Returns 1.
local refused = load_state()
if refused then return refused end
for i = 1, #KEYS do
  if i ~= 3 and i ~= 6 and i ~= 10 and i ~= 13 then redis.call('DEL', KEYS[i]) end
end
redis.call('SET', KEYS[6], tip, 'PX', 60000)
redis.call(publish_command, channel, 'closed')
redis.call(publish_command, KEYS[10], 'closed')
return 1
