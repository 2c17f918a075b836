//! Blocks of memory that this worker's connections read into and write from, one after the other.
//!
//! Who only waits holds none. The last one that was given back is taken first: it is still in the cache, and what an
//! allocator hands out in turn is not.

use std::cell::{Cell, RefCell};

use bytes::BytesMut;

/// Of what most messages fit into.
pub(crate) const SMALL: usize = 16 * 1024;
/// Of what large bodies pass through.
pub(crate) const LARGE: usize = 64 * 1024;

/// So many of each size a worker keeps.
const KEPT: [usize; 2] = [8, 4];

thread_local! {
    /// Bytes of buffers that were made since somebody has asked.
    static MADE: Cell<u64> = const { Cell::new(0) };
    static BLOCKS: RefCell<[Vec<BytesMut>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// A block with room for so many bytes, if one is there.
pub(crate) fn take(size: usize) -> Option<BytesMut> {
    let kind = match size {
        SMALL => 0,
        LARGE => 1,
        _ => return None,
    };
    BLOCKS.with_borrow_mut(|blocks| blocks[kind].pop())
}

/// A block with room for so many bytes, a new one if need be.
pub(crate) fn get(size: usize) -> BytesMut {
    take(size).unwrap_or_else(|| {
        is_made(size);
        BytesMut::with_capacity(size)
    })
}

/// No block was there, or one had to grow, by so many bytes.
pub(crate) fn is_made(bytes: usize) {
    MADE.set(MADE.get() + bytes as u64);
}

/// Bytes that this thread has made since [`forget_made`]: what may be more than before.
pub(crate) fn made() -> u64 {
    MADE.get()
}

/// The same, and counting begins anew.
pub(crate) fn forget_made() -> u64 {
    MADE.replace(0)
}

/// What is in a buffer is not wanted any more. It is the next one's, unless somebody else still holds a part of it.
pub(crate) fn give_back(mut block: BytesMut) {
    if block.capacity() == 0 {
        return;
    }
    block.clear();
    let kind = match () {
        () if block.try_reclaim(LARGE) => 1,
        () if block.try_reclaim(SMALL) => 0,
        () => return,
    };
    BLOCKS.with_borrow_mut(|blocks| {
        if blocks[kind].len() < KEPT[kind] {
            blocks[kind].push(block);
        }
    });
}

/// How many are kept of each size.
#[cfg(test)]
pub(crate) fn kept() -> [usize; 2] {
    BLOCKS.with_borrow(|blocks| [blocks[0].len(), blocks[1].len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_the_next_one_s_unless_somebody_holds_a_part_of_it() {
        assert_eq!(take(SMALL), None);
        let mut block = get(SMALL);
        block.extend_from_slice(b"head and body");
        let (place, body) = (block.as_ptr(), block.split_off(9));
        give_back(block);
        assert_eq!(kept(), [0, 0], "the body is held");
        give_back(body);
        assert_eq!(kept(), [1, 0]);
        let again = get(SMALL);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        assert!(again.capacity() >= SMALL);
        assert_eq!(kept(), [0, 0]);
    }

    #[test]
    fn what_has_grown_is_a_large_one_and_what_is_less_is_none() {
        give_back(BytesMut::new());
        give_back(BytesMut::with_capacity(SMALL / 2));
        assert_eq!(kept(), [0, 0]);
        let mut block = get(SMALL);
        block.reserve(LARGE);
        give_back(block);
        assert_eq!(kept(), [0, 1]);
        (0..20).for_each(|_| give_back(BytesMut::with_capacity(SMALL)));
        assert_eq!(kept(), [8, 1], "no more are kept");
    }
}
