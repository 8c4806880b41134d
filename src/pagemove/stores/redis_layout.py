"""How an array lies in Redis: its keys, and the scripts that read and change them.

An array KEY of which ID is a random name, so that nothing left of an earlier KEY is taken for it:

==========================  ====================================================================
``pagemove:{KEY}:meta``     hash: format, id, nbytes, block_size, groups, ready; epoch, the number
                            of writers so far; last, what the lease was when it was last taken or
                            handed over
``pagemove:{KEY}:lease``    who may write: see ``redis_lease.py``
``pagemove:{KEY/ID/G}:I``   block I of group G: its head, then its bytes, none if all are zero;
                            missing: zeros, or lost
``...:written``             bitmap of the blocks of group G that were ever written. It is there
                            from the beginning: were it missing, it would be lost
``...:fence``               hash: holder and epoch of the writer whose writes are taken; how many
                            writes there were; last, the highest number of one of this writer's
==========================  ====================================================================

What is in braces decides in which slot of a cluster a key is, so a script can look at all keys of a
group, and two groups are in different places. Blocks that follow each other, 2 MiB of them, are in
one group: so much can be asked for at a time.

The head of a block is 32 bytes: the array's id, the block's number, and which write it is, as the
writer's epoch and a number that counts its writes. A request can be held up anywhere, for any time,
or arrive twice: whatever is not newer than what is there is left out.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pagemove.stores.redis_direct import HEAD

FORMAT = 2
#: More would make a writer's beginning slow, fewer would leave nodes of a large cluster idle.
MOST_GROUPS = 64
_RUN_NBYTES = 2 << 20
_HEAD = struct.Struct("<8sQQQ")
assert _HEAD.size == HEAD

META_FIELDS = ("format", "id", "nbytes", "block_size", "groups", "ready")

# KEYS: meta, lease. ARGV: token, what the lease becomes, milliseconds, the epoch as it was, as it
# becomes, then names and values of meta.
# Goes on with what a creator left who died; not with what one who lives is at.
CREATE = """
local meta = redis.call('HMGET', KEYS[1], 'ready', 'epoch')
if meta[1] == '1' then return {'there'} end
local held = redis.call('GET', KEYS[2])
if held and string.sub(held, 1, #ARGV[1]) ~= ARGV[1] then
  return {'held', held, redis.call('PTTL', KEYS[2])}
end
local epoch = meta[2] or '0'
if epoch ~= ARGV[4] then return {'again', epoch} end
for i = 6, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('HSET', KEYS[1], 'epoch', ARGV[5], 'last', ARGV[2])
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return {'ok'}
"""

# KEYS: meta. ARGV: id. Only what is still being made can be finished.
FINISH = """
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return {'gone'} end
redis.call('HSET', KEYS[1], 'ready', 1)
return {'ok'}
"""

# KEYS: meta. ARGV: id, what the lease is.
REMOVE = """
local meta = redis.call('HMGET', KEYS[1], 'id', 'last')
if meta[1] == ARGV[1] and meta[2] ~= ARGV[2] then return {'fenced'} end
if meta[1] == ARGV[1] then redis.call('DEL', KEYS[1]) end
return {'ok'}
"""

# KEYS: written, fence. ARGV: last bit of the bitmap, holder, epoch.
PREPARE = """
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('DEL', KEYS[1])
  redis.call('SETBIT', KEYS[1], ARGV[1], 0)
  redis.call('HSET', KEYS[2], 'holder', ARGV[2], 'epoch', ARGV[3], 'writes', 0, 'last', 0)
end
return {'ok'}
"""

# KEYS: fence. ARGV: holder, epoch. Answers how many writes there were. It always writes, so that
# WAIT waits for this and all before it; without a holder that is all it does.
FENCE = """
local fence = redis.call('HMGET', KEYS[1], 'holder', 'epoch', 'writes')
if not fence[1] then return {'gone'} end
if ARGV[1] == '' or fence[1] == ARGV[1] then
  redis.call('HSET', KEYS[1], 'holder', fence[1])
elseif tonumber(fence[2]) >= tonumber(ARGV[2]) then
  return {'fenced', tonumber(fence[2])}
else
  redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'epoch', ARGV[2], 'last', 0)
end
return {'ok', tonumber(fence[3])}
"""

# KEYS: fence, written, blocks. ARGV: holder, epoch, number of the write, how many writes there were
# at least, bytes of the bitmap, then the bit and the contents of each block. Answers how many
# writes there were, and how many blocks were left out because what is there is newer, or was lost
# and may have been.
WRITE = """
local fence = redis.call('HMGET', KEYS[1], 'holder', 'writes', 'last')
if not fence[1] or redis.call('STRLEN', KEYS[2]) ~= tonumber(ARGV[5]) then return {'gone'} end
if fence[1] ~= ARGV[1] then return {'fenced', 0} end
local writes, last = tonumber(fence[2]), tonumber(fence[3])
if writes < tonumber(ARGV[4]) then return {'lost', writes} end
local epoch, number, taken, late = tonumber(ARGV[2]), tonumber(ARGV[3]), 0, 0
for i = 3, #KEYS do
  local bit, head, is = ARGV[2 * i], redis.call('GETRANGE', KEYS[i], 16, 31), 'older'
  if #head == 16 then
    local e, n = struct.unpack('<I8I8', head)
    if e == epoch and n == number then is = 'same'
    elseif e > epoch or e == epoch and n > number then is = 'newer' end
  elseif number <= last and redis.call('GETBIT', KEYS[2], bit) == 1 then
    is = 'newer'
  end
  if is == 'older' then
    redis.call('SETBIT', KEYS[2], bit, 1)
    redis.call('SET', KEYS[i], ARGV[2 * i + 1])
    taken = taken + 1
  elseif is == 'newer' then
    late = late + 1
  end
end
if taken > 0 then
  writes = redis.call('HINCRBY', KEYS[1], 'writes', 1)
  if number > last then redis.call('HSET', KEYS[1], 'last', number) end
end
return {'ok', writes, late}
"""

# KEYS: written, blocks. ARGV: bytes of the bitmap, the bit of each. Answers its contents; 0: never
# written; 1: lost.
LOOK = """
if redis.call('STRLEN', KEYS[1]) ~= tonumber(ARGV[1]) then return false end
local found = {}
for i = 2, #KEYS do
  found[i - 1] = redis.call('GET', KEYS[i]) or redis.call('GETBIT', KEYS[1], ARGV[i])
end
return found
"""


class Layout(NamedTuple):
    """Where the blocks of one array are."""

    key: str
    id: str
    nbytes: int
    block_size: int
    groups: int

    @property
    def run(self) -> int:
        """How many blocks that follow each other are in one group."""
        return max(_RUN_NBYTES // self.block_size, 1)

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-self.nbytes // self.block_size)

    def group(self, block: int) -> int:
        """Return the group of a block."""
        return block // self.run % self.groups

    def bit(self, block: int) -> int:
        """Return the place of a block in its group's bitmap."""
        return block // self.run // self.groups * self.run + block % self.run

    @property
    def last_bit(self) -> int:
        """Return the last place that a group's bitmap may need."""
        return max(-(-self.blocks // (self.run * self.groups)) * self.run - 1, 0)

    @property
    def bitmap_nbytes(self) -> int:
        """Return the length of a group's bitmap."""
        return self.last_bit // 8 + 1

    def head(self, block: int, epoch: int, number: int) -> bytes:
        """Return what a block begins with, of this write."""
        return _HEAD.pack(bytes.fromhex(self.id), block, epoch, number)

    def is_of(self, block: int, head: bytes) -> bool:
        """Return whether a head is one of this block."""
        return len(head) == HEAD and head.startswith(self.head(block, 0, 0)[:16])

    def block_key(self, block: int) -> str:
        """Name the key of a block."""
        return f"{self._prefix(self.group(block))}:{block}"

    def written(self, group: int) -> str:
        """Name the key of a group's bitmap."""
        return f"{self._prefix(group)}:written"

    def fence(self, group: int) -> str:
        """Name the key of a group's fence."""
        return f"{self._prefix(group)}:fence"

    def _prefix(self, group: int) -> str:
        return f"pagemove:{{{self.key}/{self.id}/{group}}}"


def groups_for(nbytes: int, block_size: int) -> int:
    """Choose how many groups a new array has."""
    return min(MOST_GROUPS, -(-nbytes // max(_RUN_NBYTES, block_size)))


def meta_key(key: str) -> str:
    """Name the key of an array's metadata."""
    return f"pagemove:{{{key}}}:meta"


def lease_key(key: str) -> str:
    """Name the key of an array's lease."""
    return f"pagemove:{{{key}}}:lease"
