"""How an array lies in Redis: its keys, and the scripts that read and change them.

An array KEY of which ID is a random name, so that nothing left of an earlier KEY is taken for it:

==========================  ====================================================================
``pagemove:{KEY}:meta``     hash: format, id, nbytes, block_size, groups, ready; epoch, the number
                            of writers so far
``pagemove:{KEY}:lease``    who may write: see ``redis_lease.py``
``pagemove:{KEY/ID/G}:I``   block I of group G; missing: zeros, or lost; empty: zeros
``...:written``             bitmap of the blocks of group G that were ever written. It is there
                            from the beginning: were it missing, it would be lost
``...:fence``               hash: epoch of the writer whose writes are taken, and how many writes
                            there were
==========================  ====================================================================

What is in braces decides in which slot of a cluster a key is, so a script can look at all keys of a
group, and two groups are in different places. Blocks that follow each other, 2 MiB of them, are in
one group: so much can be asked for at a time.
"""

from __future__ import annotations

from typing import NamedTuple

FORMAT = 1
#: More would make a writer's beginning slow, fewer would leave nodes of a large cluster idle.
MOST_GROUPS = 64
_RUN_NBYTES = 2 << 20

META_FIELDS = ("format", "id", "nbytes", "block_size", "groups", "ready")

# KEYS: meta, lease. ARGV: token, owner, milliseconds, then names and values of meta.
# Goes on with what a creator left who died; not with what one who lives is at.
CREATE = """
if redis.call('HGET', KEYS[1], 'ready') == '1' then return {'there'} end
local held = redis.call('GET', KEYS[2])
if held and string.sub(held, 1, #ARGV[1]) ~= ARGV[1] then
  return {'held', held, redis.call('PTTL', KEYS[2])}
end
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('SET', KEYS[2], ARGV[1] .. ' ' .. epoch .. ' ' .. ARGV[2], 'PX', ARGV[3])
return {'ok', epoch}
"""

# KEYS: written, fence. ARGV: last bit of the bitmap, epoch.
PREPARE = """
redis.call('DEL', KEYS[1])
redis.call('SETBIT', KEYS[1], ARGV[1], 0)
redis.call('HSET', KEYS[2], 'epoch', ARGV[2], 'writes', 0)
return {'ok'}
"""

# KEYS: fence. ARGV: epoch. Answers how many writes there were.
FENCE = """
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then return {'gone'} end
if tonumber(epoch) > tonumber(ARGV[1]) then return {'fenced', epoch} end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
return {'ok', tonumber(redis.call('HGET', KEYS[1], 'writes'))}
"""

# KEYS: fence, written, blocks. ARGV: epoch, how many writes there were at least, then the bit and
# the contents of each block. All or nothing; answers how many writes there were.
WRITE = """
local fence = redis.call('HMGET', KEYS[1], 'epoch', 'writes')
if not fence[1] or redis.call('EXISTS', KEYS[2]) == 0 then return {'gone'} end
if fence[1] ~= ARGV[1] then return {'fenced', fence[1]} end
if tonumber(fence[2]) < tonumber(ARGV[2]) then return {'lost', tonumber(fence[2])} end
for i = 3, #KEYS do
  redis.call('SETBIT', KEYS[2], ARGV[2 * i - 3], 1)
  redis.call('SET', KEYS[i], ARGV[2 * i - 2])
end
return {'ok', redis.call('HINCRBY', KEYS[1], 'writes', 1)}
"""

# KEYS: written, blocks. ARGV: the bit of each. Answers its contents; 0: never written; 1: lost.
LOOK = """
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local found = {}
for i = 2, #KEYS do
  found[i - 1] = redis.call('GET', KEYS[i]) or redis.call('GETBIT', KEYS[1], ARGV[i - 1])
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
        """Give the group of a block."""
        return block // self.run % self.groups

    def bit(self, block: int) -> int:
        """Give the place of a block in its group's bitmap."""
        return block // self.run // self.groups * self.run + block % self.run

    def block_of(self, group: int, bit: int) -> int:
        """Give the block that has a place in a group's bitmap."""
        turn, place = divmod(bit, self.run)
        return (turn * self.groups + group) * self.run + place

    @property
    def last_bit(self) -> int:
        """Give the last place that a group's bitmap may need."""
        return max(-(-self.blocks // (self.run * self.groups)) * self.run - 1, 0)

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
