//! Directories by descriptor: every name is looked up in a directory that is open already, and
//! symbolic links are never followed, so nothing below a store can lead out of it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

const OPEN_FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// An open directory.
#[derive(Debug)]
pub(super) struct Folder(OwnedFd);

/// A name in a directory.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) stat: Stat,
}

impl Entry {
    pub(super) fn is_file(&self) -> bool {
        is_file(&self.stat)
    }

    pub(super) fn is_folder(&self) -> bool {
        FileType::from_raw_mode(self.stat.st_mode) == FileType::Directory
    }
}

impl Folder {
    /// Opens a directory where it is; the path itself may hold links.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::openat(CWD, path, OPEN_FOLDER, Mode::empty())?))
    }

    /// Opens a directory in this one.
    pub(super) fn enter(&self, name: &str) -> io::Result<Self> {
        let flags = OPEN_FOLDER | OFlags::NOFOLLOW;
        Ok(Self(rustix::fs::openat(&self.0, name, flags, Mode::empty())?))
    }

    /// Opens a directory in this one, which only its owner can enter if it has to be made.
    pub(super) fn enter_or_make(&self, name: &str) -> io::Result<Self> {
        match self.enter(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            entered => return entered,
        }
        match rustix::fs::mkdirat(&self.0, name, Mode::RWXU) {
            Ok(()) => self.sync()?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.enter(name)
    }

    /// Opens a plain file for reading.
    pub(super) fn read(&self, name: &str) -> io::Result<File> {
        // NONBLOCK: a named pipe must not make the reader wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.0, name, flags, Mode::empty())?;
        if is_file(&rustix::fs::fstat(&file)?) {
            Ok(file.into())
        } else {
            Err(Errno::NOENT.into())
        }
    }

    /// Opens a plain file for writing at any place of it; only its owner can read it if it has to
    /// be made.
    pub(super) fn write(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.0, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// What the name stands for, itself and not what it may point to.
    pub(super) fn stat(&self, name: &str) -> io::Result<Entry> {
        Ok(Entry {
            name: name.to_owned(),
            stat: rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?,
        })
    }

    /// Moves a file to a name that nobody has, or fails with `EEXIST`; atomic.
    pub(super) fn publish(&self, name: &str, to: &Self, to_name: &str) -> io::Result<()> {
        match rustix::fs::renameat_with(&self.0, name, &to.0, to_name, RenameFlags::NOREPLACE) {
            // Not every file system knows NOREPLACE; a second link is as atomic.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rustix::fs::linkat(&self.0, name, &to.0, to_name, AtFlags::empty())?;
                rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?;
            }
            moved => moved?,
        }
        to.sync()
    }

    /// Everything in it, but not what vanishes while it is read or has no UTF-8 name.
    pub(super) fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name == "." || name == ".." {
                continue;
            }
            match self.stat(name) {
                Ok(entry) => entries.push(entry),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }

    /// Removes a file.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    /// Removes an empty directory.
    pub(super) fn remove_folder(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR)?)
    }

    /// Makes what happened to its names last through a crash of the machine.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}
