use proptest::prelude::*;

use super::*;
use crate::backup::digest::sha256_hex;

/// Writes archives as the three known versions have them.
struct Archive {
    minor: u8,
    bytes: Vec<u8>,
}

impl Archive {
    fn new(minor: u8) -> Self {
        let mut archive = Self {
            minor,
            bytes: vec![b'P', b'G', b'D', b'M', b'P', 1, minor, 0, 4, 8, 1],
        };
        if minor >= 15 {
            archive.bytes.push(0);
        } else {
            archive.int(0);
        }
        for field in [1, 2, 3, 4, 5, 126, 0] {
            archive.int(field);
        }
        for text in ["app", "15.18", "15.18"] {
            archive.text(Some(text));
        }
        archive
    }

    fn int(&mut self, value: i64) {
        self.bytes.push(u8::from(value < 0));
        let magnitude = u32::try_from(value.unsigned_abs()).unwrap();
        self.bytes.extend(magnitude.to_le_bytes());
    }

    fn text(&mut self, text: Option<&str>) {
        self.int(text.map_or(-1, |text| i64::try_from(text.len()).unwrap()));
        self.bytes.extend(text.unwrap_or_default().as_bytes());
    }

    fn entry(&mut self, id: i64, has_data: bool, kind: &str, (schema, tag): (&str, &str), owner: &str) {
        self.int(id);
        self.int(i64::from(has_data));
        for text in ["1259", "16384", tag, kind] {
            self.text(Some(text));
        }
        self.int(3);
        self.text(Some("CREATE …"));
        self.text(None);
        self.text(has_data.then_some("COPY …"));
        self.text(Some(schema));
        self.text(Some(""));
        self.text(Some("heap"));
        if self.minor >= 16 {
            self.int(114);
        }
        self.text(Some(owner));
        self.text(Some("false"));
        self.text(Some("17"));
        self.text(None);
        self.bytes.push(if has_data { 1 } else { 3 });
        self.bytes.extend([0; 8]);
    }

    fn block(&mut self, id: i64, chunks: &[&str]) {
        self.bytes.push(1);
        self.int(id);
        for chunk in chunks {
            self.text(Some(chunk));
        }
        self.int(0);
    }

    fn large_objects(&mut self, id: i64, objects: &[(i64, &[&str])]) {
        self.bytes.push(3);
        self.int(id);
        for (oid, chunks) in objects {
            self.int(*oid);
            for chunk in *chunks {
                self.text(Some(chunk));
            }
            self.int(0);
        }
        self.int(0);
    }
}

fn example(minor: u8) -> Vec<u8> {
    let mut archive = Archive::new(minor);
    archive.int(5);
    archive.entry(1, false, "ENCODING", ("", "ENCODING"), "");
    archive.entry(2, false, "TABLE", ("public", "events"), "app");
    archive.entry(3, true, "TABLE DATA", ("public", "events"), "app");
    archive.entry(4, true, "TABLE DATA", ("Odd", "say \"x\""), "root");
    archive.entry(5, true, "BLOBS", ("", "BLOBS"), "");
    archive.block(3, &["1\ta\n2\t", "b\n", "\\.", "\n\n\n"]);
    archive.large_objects(5, &[(16400, &["abc", "de"]), (-5, &[])]);
    archive.block(4, &["\\.\n\n\n"]);
    archive.bytes
}

fn walk(pieces: &[&[u8]]) -> Result<Walked, WalkError> {
    let mut walker = Walker::new();
    for piece in pieces {
        walker.feed(piece)?;
    }
    walker.finish()
}

#[test]
fn every_known_version_is_read_whole() {
    for minor in 14..=16 {
        let walked = walk(&[&example(minor)]).unwrap();
        let contents = walked.contents.unwrap();
        assert_eq!(walked.version, format!("1.{minor}"));
        assert_eq!(contents.toc_entries, 5);
        assert_eq!(contents.large_objects, LargeObjects { count: 2, bytes: 5 });
        assert_eq!(
            contents.owners.iter().map(String::as_str).collect::<Vec<_>>(),
            ["app", "root"]
        );
        let [events, odd] = contents.tables.as_slice() else {
            panic!("{contents:?}");
        };
        assert_eq!((events.rows, events.bytes), (2, 8));
        assert_eq!(events.sha256, sha256_hex(b"1\ta\n2\tb\n"));
        assert_eq!(
            (odd.schema.as_str(), odd.name.as_str(), odd.rows),
            ("Odd", "say \"x\"", 0)
        );
    }
}

#[test]
fn every_truncation_is_an_error() {
    for minor in 14..=16 {
        let archive = example(minor);
        for length in 0..archive.len() {
            // Before the version is known to be known, nothing is.
            assert!(
                walk(&[&archive[..length]]).is_err(),
                "version 1.{minor}, {length} bytes"
            );
        }
    }
}

/// The archive with longer chunks.
fn join(pieces: &[&[u8]]) -> Vec<u8> {
    let mut walker = Walker::new();
    let mut whole = Vec::new();
    for piece in pieces {
        let mut joined = Joined::within(Vec::new(), piece.len());
        walker.feed_and_tell(piece, |passed| joined.add(passed)).unwrap();
        whole.extend(joined.into_bytes());
    }
    whole
}

#[test]
fn an_archive_that_says_where_its_blocks_begin_is_not_changed() {
    let mut archive = Archive::new(14);
    archive.int(1);
    archive.entry(3, true, "TABLE DATA", ("public", "events"), "app");
    let position = archive.bytes.len() - 9;
    archive.block(3, &["1\n", "2\n", "\\.\n\n\n"]);
    assert!(join(&[&archive.bytes]).len() < archive.bytes.len());
    archive.bytes[position] = 2;
    assert_eq!(join(&[&archive.bytes]), archive.bytes);
}

#[test]
fn what_follows_the_last_block_is_an_error() {
    let mut archive = example(14);
    archive.push(0);
    assert!(walk(&[&archive]).is_err());
}

#[test]
fn a_block_that_comes_twice_or_belongs_to_nothing_is_an_error() {
    let mut archive = Archive::new(14);
    archive.int(1);
    archive.entry(3, true, "TABLE DATA", ("public", "events"), "app");
    let head = archive.bytes.clone();
    archive.block(3, &["\\.\n\n\n"]);
    assert!(walk(&[&archive.bytes]).is_ok());
    archive.block(3, &["\\.\n\n\n"]);
    assert_eq!(
        walk(&[&archive.bytes]).unwrap_err().problem,
        "a block belongs to no entry, or comes twice"
    );
    archive.bytes = head.clone();
    archive.block(4, &["\\.\n\n\n"]);
    assert!(walk(&[&archive.bytes]).is_err());
    archive.bytes = head.clone();
    archive.large_objects(3, &[]);
    assert_eq!(
        walk(&[&archive.bytes]).unwrap_err().problem,
        "a block is not of its entry's kind"
    );
    assert_eq!(walk(&[&head]).unwrap_err().problem, "the data of an entry is missing");
}

#[test]
fn an_unknown_version_is_opaque_and_a_known_one_in_another_form_is_refused() {
    let walked = walk(&[b"PGDMP", &[1, 17, 0, 4, 8, 1], b"whatever follows"]).unwrap();
    assert_eq!((walked.version.as_str(), walked.contents), ("1.17", None));
    assert!(walk(&[b"PGDMX"]).is_err());
    let mut compressed = example(15);
    compressed[11] = 1;
    assert!(walk(&[&compressed]).unwrap_err().to_string().contains("-Z0"));
    let mut tar = example(14);
    tar[10] = 3;
    assert!(walk(&[&tar]).is_err());
}

#[test]
fn a_length_that_cannot_be_is_not_believed() {
    // An entry count and a text of two thousand million: nothing of that size may be reserved.
    let mut archive = Archive::new(14);
    archive.int(i64::from(i32::MAX));
    archive.int(1);
    archive.int(0);
    archive.int(i64::from(i32::MAX));
    assert_eq!(walk(&[&archive.bytes]).unwrap_err().problem, "it ends too early");
    let mut walker = Walker::new();
    assert!(walker.feed(b"nonsense").is_err());
    assert!(walker.feed(b"more").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_result_does_not_depend_on_how_the_archive_was_cut(
        minor in 14_u8..=16,
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let archive = example(minor);
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(archive.len() + 1)).collect();
        places.extend([0, archive.len()]);
        places.sort_unstable();
        let pieces: Vec<&[u8]> = places.windows(2).map(|pair| &archive[pair[0]..pair[1]]).collect();
        prop_assert_eq!(walk(&pieces), walk(&[&archive]));
    }

    #[test]
    fn joined_chunks_hold_the_same_however_they_were_cut(
        minor in 14_u8..=16,
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let archive = example(minor);
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(archive.len() + 1)).collect();
        places.extend([0, archive.len()]);
        places.sort_unstable();
        let pieces: Vec<&[u8]> = places.windows(2).map(|pair| &archive[pair[0]..pair[1]]).collect();
        let joined = join(&pieces);
        prop_assert_eq!(walk(&[&joined]), walk(&[&archive]));
        let whole = join(&[&archive]);
        prop_assert_eq!(join(&[&joined]), whole.clone());
        prop_assert!(whole.len() < archive.len());
    }

    #[test]
    fn damage_never_panics(
        minor in 14_u8..=16,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        noise in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut archive = example(minor);
        for (place, byte) in damage {
            let place = place.index(archive.len());
            archive[place] = byte;
        }
        let _ = walk(&[&archive]);
        let _ = walk(&[&archive, &noise]);
        let _ = walk(&[&noise]);
        let _ = walk(&[&example(minor)[..60], &noise]);
    }
}
