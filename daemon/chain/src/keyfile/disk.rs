//! Reading and making keyfiles: permissions, bounds, all or nothing.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use zeroize::Zeroizing;

use super::Fault;

/// Longest file that is read. A vault around a keyfile of 24 words has less than 4 KiB; ours to choose.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The bytes of a file with a secret: nobody but its owner may read or write it.
pub(super) fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, Fault> {
    read(path, private)
}

/// The bytes of a file that need not be secret.
pub(super) fn read_public(path: &Path) -> Result<Zeroizing<Vec<u8>>, Fault> {
    read(path, |_| Ok(()))
}

fn read(
    path: &Path,
    allowed: impl Fn(&Metadata) -> Result<(), Fault>,
) -> Result<Zeroizing<Vec<u8>>, Fault> {
    // Looked at before it is opened, since opening a pipe would wait for its other end.
    if !std::fs::metadata(path)
        .map_err(|source| failed("read", source))?
        .is_file()
    {
        return Err(Fault::NotAFile);
    }
    let file = File::open(path).map_err(|source| failed("open", source))?;
    // The opened file, not the path, decides: what lies at the path may have changed in between.
    allowed(&file.metadata().map_err(|source| failed("read", source))?)?;
    // The whole room at once: a vector that grows leaves copies behind which nobody wipes.
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX as usize + 1));
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| failed("read", source))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Fault::TooLong {
            max: FILE_BYTES_MAX,
        });
    }
    Ok(bytes)
}

#[cfg(unix)]
fn private(metadata: &Metadata) -> Result<(), Fault> {
    use std::os::unix::fs::PermissionsExt;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 {
        Ok(())
    } else {
        Err(Fault::Permissions { mode })
    }
}

#[cfg(not(unix))]
fn private(_: &Metadata) -> Result<(), Fault> {
    Ok(())
}

/// Makes a file of these bytes, and the directories above it: whole or not at all, and only if there is none.
///
/// The bytes go to a file beside it first, and reach the disk; then a hard link gives them their name, which fails where
/// the name is taken. A crash leaves at most `.NAME.RANDOM.new` behind.
pub(super) fn create(path: &Path, bytes: &[u8]) -> Result<(), Fault> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Fault::NotAFile);
    };
    make_directory(parent).map_err(|source| failed("make its directory", source))?;
    if path.symlink_metadata().is_ok() {
        return Err(Fault::Exists);
    }
    let mut random = [0; 8];
    getrandom::fill(&mut random)?;
    let fresh = parent.join(format!(
        ".{}.{}.new",
        name.to_string_lossy(),
        hex::encode(random)
    ));
    let written = write_and_link(&fresh, path, bytes);
    // Whether it ever came to be or not, that name is done with.
    let removed = std::fs::remove_file(&fresh);
    written?;
    removed.map_err(|source| failed("remove its first name", source))?;
    File::open(parent)
        .and_then(|parent| parent.sync_all())
        .map_err(|source| failed("write its directory", source))
}

fn write_and_link(fresh: &Path, path: &Path, bytes: &[u8]) -> Result<(), Fault> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options
        .open(fresh)
        .map_err(|source| failed("make", source))?;
    file.write_all(bytes)
        .map_err(|source| failed("write", source))?;
    file.sync_all().map_err(|source| failed("write", source))?;
    std::fs::hard_link(fresh, path).map_err(|source| match source.kind() {
        ErrorKind::AlreadyExists => Fault::Exists,
        _ => failed("give its name to", source),
    })
}

fn make_directory(path: &Path) -> std::io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

fn failed(doing: &'static str, source: std::io::Error) -> Fault {
    match source.kind() {
        ErrorKind::NotFound if doing == "read" || doing == "open" => Fault::Missing,
        _ => Fault::Io { doing, source },
    }
}
