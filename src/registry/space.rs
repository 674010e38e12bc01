//! Namespaces: found by name, made by the first server, gone with the last.

use super::{Error, Registry, chain};
use crate::shm::{NONE, SPACE_NAME_MAX, Space, Tables, fault, space_flag};

/// A valid name of a namespace: `[A-Za-z0-9._-]{1,64}`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpaceName<'a>(&'a str);

impl<'a> SpaceName<'a> {
    /// What a name may be, for messages.
    pub const SYNTAX: &'static str = "1 to 64 letters, digits, \".\", \"_\" or \"-\"";

    /// Checks a name.
    pub fn new(name: &'a [u8]) -> Option<Self> {
        let good = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > SPACE_NAME_MAX || !name.iter().all(good) {
            return None;
        }
        std::str::from_utf8(name).ok().map(Self)
    }

    /// The name.
    pub fn as_str(self) -> &'a str {
        self.0
    }
}

/// A namespace as it was found: valid while its generation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpaceRef {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

/// The name of a record.
pub(super) fn name_of(space: &Space) -> &str {
    let len = usize::from(space.name_len).min(SPACE_NAME_MAX);
    std::str::from_utf8(&space.name[..len]).unwrap_or_default()
}

fn bucket_of(t: &Tables<'_>, name: &str) -> usize {
    chain::bucket(t.header.secret, &[name.as_bytes()], t.space_index.len())
}

/// Enters a namespace into the hash table.
pub(super) fn index(t: &mut Tables<'_>, slot: u32) {
    let bucket = bucket_of(t, name_of(&t.spaces[slot as usize]));
    chain::link(&mut t.space_index[bucket], t.spaces, slot);
}

fn unindex(t: &mut Tables<'_>, slot: u32) {
    let bucket = bucket_of(t, name_of(&t.spaces[slot as usize]));
    chain::unlink(&mut t.space_index[bucket], t.spaces, slot);
}

impl Registry<'_> {
    /// Finds a namespace.
    pub fn find_space(&self, name: SpaceName<'_>) -> Option<SpaceRef> {
        let t = &*self.g;
        let mut at = t.space_index[bucket_of(t, name.0)];
        while let Some(space) = t.spaces.get(at as usize) {
            if name_of(space) == name.0 {
                return Some(SpaceRef { slot: at, generation: space.generation });
            }
            at = space.hash_next;
        }
        None
    }

    /// Whether a namespace found earlier is still the same.
    #[inline]
    pub fn is_current(&self, space: SpaceRef) -> bool {
        self.g
            .spaces
            .get(space.slot as usize)
            .is_some_and(|s| s.live != 0 && s.generation == space.generation)
    }

    /// The names of all namespaces, in no order.
    pub fn space_names(&self) -> impl Iterator<Item = &str> {
        self.g.spaces[..self.g.header.space_high_water as usize]
            .iter()
            .filter(|s| s.live != 0)
            .map(name_of)
    }

    /// The zone's only namespace; `Err` with their number when there is none or more than one.
    ///
    /// # Errors
    ///
    /// The number of namespaces.
    pub fn only_space(&self) -> Result<SpaceRef, usize> {
        if self.g.header.spaces != 1 {
            return Err(self.g.header.spaces as usize);
        }
        let slot = self.g.spaces[..self.g.header.space_high_water as usize]
            .iter()
            .position(|s| s.live != 0)
            .ok_or(0usize)?;
        Ok(SpaceRef { slot: slot as u32, generation: self.g.spaces[slot].generation })
    }

    /// The name of a namespace.
    pub fn space_name(&self, space: SpaceRef) -> &str {
        name_of(&self.g.spaces[space.slot as usize])
    }

    /// Finds a namespace or makes it.
    ///
    /// # Errors
    ///
    /// [`Error::Full`].
    pub(super) fn make_space(&mut self, name: SpaceName<'_>) -> Result<SpaceRef, Error> {
        if let Some(found) = self.find_space(name) {
            return Ok(found);
        }
        let t = &mut *self.g;
        let slot = t.header.free_space;
        let Some(space) = t.spaces.get_mut(slot as usize) else {
            return Err(Error::Full("namespace"));
        };
        t.header.free_space = space.hash_next;
        fault::point!("space.slot");

        let mut bytes = [0; SPACE_NAME_MAX];
        bytes[..name.0.len()].copy_from_slice(name.0.as_bytes());
        *space = Space {
            live: 0,
            generation: space.generation,
            name: bytes,
            name_len: name.0.len() as u8,
            flags: t.header.checks as u16,
            ..EMPTY
        };
        super::repair::before(|| t.spaces[slot as usize].live = 1);
        fault::point!("space.live");
        index(t, slot);
        fault::point!("space.indexed");
        t.header.spaces += 1;
        t.header.space_high_water = t.header.space_high_water.max(slot + 1);
        Ok(SpaceRef { slot, generation: t.spaces[slot as usize].generation })
    }

    /// Makes `name` a namespace of the configuration, which stays without servers.
    ///
    /// # Errors
    ///
    /// [`Error::Full`].
    pub fn configure_space(&mut self, name: SpaceName<'_>) -> Result<SpaceRef, Error> {
        let space = self.make_space(name)?;
        self.g.spaces[space.slot as usize].flags |= space_flag::CONFIGURED;
        Ok(space)
    }

    /// Forgets that the configuration names other namespaces than these.
    pub(super) fn unconfigure_others(&mut self, named: &[SpaceName<'_>]) {
        for slot in 0..self.g.header.space_high_water as usize {
            let space = &mut self.g.spaces[slot];
            if space.flags & space_flag::CONFIGURED != 0
                && !named.iter().any(|name| name.0 == name_of(space))
            {
                space.flags &= !space_flag::CONFIGURED;
                fault::point!("configure.forgotten");
            }
        }
    }

    /// Frees a namespace that has no server and is not in the configuration.
    pub(super) fn drop_if_unused(&mut self, slot: u32) {
        let t = &mut *self.g;
        let space = &t.spaces[slot as usize];
        if space.live == 0 || space.members > 0 || space.flags & space_flag::CONFIGURED != 0 {
            return;
        }
        unindex(t, slot);
        fault::point!("space.unindexed");
        let free = t.header.free_space;
        let space = &mut t.spaces[slot as usize];
        super::repair::before(|| space.live = 0);
        fault::point!("space.dead");
        space.generation = space.generation.wrapping_add(1);
        space.heaps = EMPTY.heaps;
        space.hash_next = free;
        t.header.free_space = slot;
        t.header.spaces -= 1;
    }

    /// Frees all namespaces that are neither used nor configured.
    pub(super) fn drop_unused_spaces(&mut self) {
        for slot in 0..self.g.header.space_high_water {
            self.drop_if_unused(slot);
        }
    }

    /// Notes a change.
    pub(super) fn touch(&mut self) {
        self.g.header.version += 1;
    }
}

/// A namespace without name and servers.
pub(super) const EMPTY: Space = Space {
    live: 0,
    generation: 0,
    flags: 0,
    orders: 0,
    hash_next: NONE,
    name_len: 0,
    member_head: NONE,
    member_tail: NONE,
    members: 0,
    statics: 0,
    fresh_head: NONE,
    fresh_tail: NONE,
    classes: [0; crate::shm::class::COUNT],
    ready: [0; 2],
    common_weight: NONE,
    root: NONE,
    turn: [0; 4],
    heaps: [crate::shm::Extent { start: 0, cap: 0, len: 0 }; crate::shm::heap::COUNT],
    name: [0; SPACE_NAME_MAX],
};

#[cfg(test)]
mod tests {
    use super::SpaceName;

    #[test]
    fn names() {
        let longest = "a".repeat(64);
        for good in ["a", "A-z_0.9", longest.as_str()] {
            assert_eq!(SpaceName::new(good.as_bytes()).map(SpaceName::as_str), Some(good));
        }
        let too_long = "a".repeat(65);
        for bad in ["", "a b", "a/b", "a\0", "ä", "a:b", too_long.as_str()] {
            assert_eq!(SpaceName::new(bad.as_bytes()), None, "{bad}");
        }
    }
}
