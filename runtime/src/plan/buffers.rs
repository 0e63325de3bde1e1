use inlay_devices::program::{Region, SLOT_ALIGN, Slot, aligned};

use super::view::View;

/// A buffer of a plan: a piece of a region that is placed when all calls are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BufferId(u32);

impl BufferId {
    pub fn index(self) -> usize {
        self.0 as usize
    }

    #[cfg(test)]
    pub fn for_test() -> Self {
        BufferId(0)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Buffer {
    pub region: Region,
    pub len: usize,
    /// Offset in the region; for [`Region::Arena`] known only after planning.
    pub offset: usize,
    /// Written by the host before the forward segment.
    pub fed: bool,
    /// Read by the host after the forward segment.
    pub read: bool,
}

/// The buffers of a plan.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    all: Vec<Buffer>,
    region_lens: [usize; Region::ALL.len()],
}

impl Buffers {
    /// A new buffer. Outside of the arena it is placed after those before it.
    pub fn add(&mut self, region: Region, len: usize) -> BufferId {
        let id = BufferId(u32::try_from(self.all.len()).expect("fewer buffers than bytes of memory"));
        let offset = self.region_lens[region.index()];
        if region != Region::Arena {
            self.region_lens[region.index()] = offset + aligned(len);
        }
        self.all.push(Buffer { region, len, offset, fed: false, read: false });
        id
    }

    /// All of one of the fixed regions.
    pub fn whole(&mut self, region: Region, len: usize) -> BufferId {
        let id = self.add(region, len);
        self.all[id.index()].offset = 0;
        self.region_lens[region.index()] = self.region_lens[region.index()].max(len);
        id
    }

    pub fn get(&self, id: BufferId) -> &Buffer {
        &self.all[id.index()]
    }

    pub fn get_mut(&mut self, id: BufferId) -> &mut Buffer {
        &mut self.all[id.index()]
    }

    pub fn by_index(&self, index: usize) -> &Buffer {
        &self.all[index]
    }

    pub fn set_offset(&mut self, index: usize, offset: usize) {
        self.all[index].offset = offset;
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn region_len(&self, region: Region) -> usize {
        self.region_lens[region.index()]
    }

    pub fn set_region_len(&mut self, region: Region, len: usize) {
        self.region_lens[region.index()] = len;
    }

    /// The slot of a contiguous view.
    pub fn slot(&self, view: &View) -> Slot {
        let buffer = self.get(view.buffer);
        Slot::new(buffer.region, buffer.offset + view.offset, view.count())
    }

    /// Whether a kernel can be bound to the first element of a view.
    pub fn is_bindable(&self, view: &View) -> bool {
        view.offset.is_multiple_of(SLOT_ALIGN)
    }
}
