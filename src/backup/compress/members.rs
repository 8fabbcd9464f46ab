//! Packs equal blocks, each into a member (gzip) or frame (zstd) of its own, on one thread or several,
//! and writes them in their order.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use zstd::bulk::Compressor as Zstd;

use super::{Packing, gzip};
use crate::backup::priority;

/// How much is packed at once: what lies further back cannot be referred to, so a block is as long as
/// zstd's usual window.
pub(super) fn block_bytes(packing: Packing) -> usize {
    match packing {
        Packing::Zstd(_) => 2 * 1024 * 1024,
        Packing::Gzip(_) | Packing::None => gzip::BLOCK,
    }
}

/// Packs one block at a time; made once, because its tables are larger than a block's result.
enum Packer {
    Gzip(Box<gzip::Packer>),
    Zstd(Zstd<'static>),
    None,
}

impl Packer {
    fn new(packing: Packing) -> io::Result<Self> {
        Ok(match packing {
            Packing::Gzip(level) => Self::Gzip(Box::new(gzip::Packer::new(level)?)),
            Packing::Zstd(level) => {
                let mut zstd = Zstd::new(level)?;
                zstd.include_checksum(true)?;
                Self::Zstd(zstd)
            }
            Packing::None => Self::None,
        })
    }

    fn pack(&mut self, block: &mut Block) -> io::Result<()> {
        let Block { input, packed, length } = block;
        match self {
            Self::Gzip(gzip) => *length = gzip.pack(input, packed)?,
            Self::Zstd(zstd) => {
                packed.clear();
                packed.reserve(zstd::zstd_safe::compress_bound(input.len()));
                *length = zstd.compress_to_buffer(input.as_slice(), packed)?;
            }
            Self::None => {
                packed.clear();
                packed.extend_from_slice(input);
                *length = input.len();
            }
        }
        Ok(())
    }
}

/// What goes to a thread and comes back: the block, and room for what it is packed into.
#[derive(Default)]
struct Block {
    input: Vec<u8>,
    packed: Vec<u8>,
    /// How much of `packed` it is.
    length: usize,
}

impl Block {
    fn packed(&self) -> &[u8] {
        self.packed.get(..self.length).unwrap_or_default()
    }
}

struct Worker {
    blocks: SyncSender<Block>,
    results: Receiver<io::Result<Block>>,
}

/// The blocks of one stream. They are dealt to the threads in turn, so each thread's results come in
/// the stream's order.
pub struct Members<W> {
    output: W,
    block_bytes: usize,
    /// Packs on the writing thread, where no other is wanted.
    own: Option<Packer>,
    workers: VecDeque<Worker>,
    /// How many blocks are with the threads: the oldest with the first of `workers`.
    dealt: usize,
    filling: Vec<u8>,
    spare: Vec<Block>,
    begun: bool,
}

impl<W: Write> Members<W> {
    pub(super) fn new(packing: Packing, threads: u32, output: W) -> io::Result<Self> {
        let others = if threads > 1 { threads } else { 0 };
        Ok(Self {
            output,
            block_bytes: block_bytes(packing),
            own: (others == 0).then(|| Packer::new(packing)).transpose()?,
            workers: (0..others).map(|_| start(packing)).collect::<io::Result<_>>()?,
            dealt: 0,
            filling: Vec::new(),
            spare: Vec::new(),
            begun: false,
        })
    }

    /// Gives the filled block to the next thread; takes the oldest back first when all have one.
    fn deal(&mut self) -> io::Result<()> {
        self.begun = true;
        if let Some(packer) = &mut self.own {
            let mut block = self.spare.pop().unwrap_or_default();
            std::mem::swap(&mut block.input, &mut self.filling);
            packer.pack(&mut block)?;
            self.output.write_all(block.packed())?;
            std::mem::swap(&mut block.input, &mut self.filling);
            self.filling.clear();
            self.spare.push(block);
            return Ok(());
        }
        if self.dealt == self.workers.len() {
            self.collect()?;
        }
        let mut block = self.spare.pop().unwrap_or_default();
        std::mem::swap(&mut block.input, &mut self.filling);
        self.filling.clear();
        let worker = self.workers.get(self.dealt).ok_or_else(gone)?;
        worker.blocks.send(block).map_err(|_| gone())?;
        self.dealt += 1;
        Ok(())
    }

    /// Writes the oldest block that is with a thread. That thread is then the next to get one.
    fn collect(&mut self) -> io::Result<()> {
        let worker = self.workers.front().ok_or_else(gone)?;
        let block = worker.results.recv().map_err(|_| gone())??;
        self.output.write_all(block.packed())?;
        self.spare.push(block);
        self.workers.rotate_left(1);
        self.dealt = self.dealt.saturating_sub(1);
        Ok(())
    }

    pub(super) fn get_ref(&self) -> &W {
        &self.output
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        // An empty stream is one empty member: nothing at all would not be gzip.
        if !self.filling.is_empty() || !self.begun {
            self.deal()?;
        }
        while self.dealt > 0 {
            self.collect()?;
        }
        Ok(self.output)
    }
}

impl<W: Write> Write for Members<W> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.filling.len() >= self.block_bytes {
            self.deal()?;
        }
        if self.filling.capacity() < self.block_bytes {
            self.filling.reserve_exact(self.block_bytes);
        }
        let room = self.block_bytes.saturating_sub(self.filling.len()).min(piece.len());
        let (taken, _) = piece.split_at(room);
        self.filling.extend_from_slice(taken);
        Ok(room)
    }

    /// Blocks stay as long as they are; only what is packed is passed on.
    fn flush(&mut self) -> io::Result<()> {
        while self.dealt > 0 {
            self.collect()?;
        }
        self.output.flush()
    }
}

fn gone() -> io::Error {
    io::Error::other("a packing thread ended early")
}

/// A thread that packs blocks until nobody has any more for it.
fn start(packing: Packing) -> io::Result<Worker> {
    let (blocks, work) = sync_channel::<Block>(1);
    let (done, results) = sync_channel(1);
    let mut packer = Packer::new(packing)?;
    thread::Builder::new()
        .name("pgreeve-member".to_owned())
        .spawn(move || {
            priority::lower();
            while let Ok(mut block) = work.recv() {
                let result = packer.pack(&mut block).map(|()| block);
                if done.send(result).is_err() {
                    break;
                }
            }
        })?;
    Ok(Worker { blocks, results })
}
