//! Where the rows of replaced data files stand after a rewrite: old (file, row) → new (file, row).
//!
//! A rewrite that keeps the order of rows needs no table: the place of a row is its rank among the survivors of its file,
//! behind the place of the first one. A sorted rewrite lists every row's place. Pure; who keeps a map where is told in
//! `commit/row_maps.rs`.
//!
//! Invariant: a map is only as good as the deletes that it was made with. A row that was deleted before the rewrite has no
//! place in it, so a delete that names such a row disappears (protocol F4, test `a_dropped_row_has_no_place`).

use std::collections::BTreeMap;

use roaring::RoaringBitmap;

/// Where the rows of one replaced file stand.
#[derive(Clone, Debug, PartialEq)]
pub enum FileMap {
    /// Survivors in their old order.
    InOrder {
        /// Rows that were deleted before the rewrite, and were not written again.
        dropped: RoaringBitmap,
        /// Ascending by `first`, the first one from 0; none where all rows were dropped.
        pieces: Vec<Piece>,
    },
    /// The place of each row.
    Listed(Vec<Option<Place>>),
}

/// Survivors of one file that stand together in one output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Rank of its first row among the survivors of the old file.
    pub first: u32,
    pub place: Place,
}

/// A row of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Which of [`RowMap::outputs`].
    pub output: u32,
    pub row: u32,
}

/// One rewrite: its outputs, and for each replaced file where its rows stand now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowMap {
    /// Paths of the files that were written.
    pub outputs: Vec<String>,
    /// By path of the replaced file.
    pub files: BTreeMap<String, FileMap>,
}

impl FileMap {
    /// `None` for a row that was dropped, or that the file never had.
    pub fn place(&self, row: u32) -> Option<Place> {
        match self {
            Self::Listed(places) => places.get(row as usize).copied().flatten(),
            Self::InOrder { dropped, pieces } => {
                if dropped.contains(row) {
                    return None;
                }
                let before = u32::try_from(dropped.rank(row)).expect("a bitmap of 32-bit numbers below one of them");
                let rank = row - before;
                let piece = pieces[..pieces.partition_point(|piece| piece.first <= rank)].last()?;
                Some(Place { output: piece.place.output, row: piece.place.row.checked_add(rank - piece.first)? })
            }
        }
    }
}

impl RowMap {
    /// Rows of a replaced file as rows of the outputs, by path. What was dropped disappears; a file that the map does not
    /// know has none.
    pub fn forward(&self, path: &str, rows: &RoaringBitmap) -> BTreeMap<&str, RoaringBitmap> {
        let mut forwarded: BTreeMap<&str, RoaringBitmap> = BTreeMap::new();
        let Some(file) = self.files.get(path) else { return forwarded };
        for place in rows.iter().filter_map(|row| file.place(row)) {
            let output = self.outputs[place.output as usize].as_str();
            forwarded.entry(output).or_default().insert(place.row);
        }
        forwarded
    }

    /// As bytes that [`RowMap::decode`] reads. Little-endian: outputs, then files, each text and list behind its length.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_len(&mut bytes, self.outputs.len());
        self.outputs.iter().for_each(|path| put_text(&mut bytes, path));
        put_len(&mut bytes, self.files.len());
        for (path, file) in &self.files {
            put_text(&mut bytes, path);
            file.encode(&mut bytes);
        }
        bytes
    }

    /// `None` for bytes that no [`RowMap::encode`] has made.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let outputs = (0..reader.count(4)?).map(|_| reader.text()).collect::<Option<Vec<_>>>()?;
        let mut files = BTreeMap::new();
        for _ in 0..reader.count(9)? {
            files.insert(reader.text()?, FileMap::read(&mut reader)?);
        }
        let places = files.values().all(|file| file.places_below(outputs.len()));
        (reader.0.is_empty() && places).then_some(Self { outputs, files })
    }
}

const IN_ORDER: u8 = 1;
const LISTED: u8 = 2;
/// Output of a row that was dropped.
const NOWHERE: u32 = u32::MAX;

impl FileMap {
    /// Appends what [`FileMap::decode`] reads.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::InOrder { dropped, pieces } => {
                bytes.push(IN_ORDER);
                put_len(bytes, dropped.serialized_size());
                dropped.serialize_into(&mut *bytes).expect("writing to memory does not fail");
                put_len(bytes, pieces.len());
                for piece in pieces {
                    [piece.first, piece.place.output, piece.place.row].into_iter().for_each(|word| put(bytes, word));
                }
            }
            Self::Listed(places) => {
                bytes.push(LISTED);
                put_len(bytes, places.len());
                for place in places {
                    let Place { output, row } = place.unwrap_or(Place { output: NOWHERE, row: 0 });
                    put(bytes, output);
                    put(bytes, row);
                }
            }
        }
    }

    /// `None` for bytes that are not one whole [`FileMap::encode`].
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        Self::read(&mut reader).filter(|_| reader.0.is_empty())
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        match reader.take(1)? {
            [IN_ORDER] => {
                let length = reader.count(1)?;
                let dropped = RoaringBitmap::deserialize_from(reader.take(length)?).ok()?;
                let pieces = (0..reader.count(12)?).map(|_| reader.piece()).collect::<Option<Vec<_>>>()?;
                let ascend = pieces.is_sorted_by(|a, b| a.first < b.first);
                (ascend && pieces.first().is_none_or(|piece| piece.first == 0))
                    .then_some(Self::InOrder { dropped, pieces })
            }
            [LISTED] => {
                let places = (0..reader.count(8)?).map(|_| reader.place()).collect::<Option<Vec<_>>>()?;
                Some(Self::Listed(places.into_iter().map(|place| (place.output != NOWHERE).then_some(place)).collect()))
            }
            _ => None,
        }
    }

    /// True if every place is in one of so many outputs.
    pub(crate) fn places_below(&self, outputs: usize) -> bool {
        let known = |place: &Place| (place.output as usize) < outputs;
        match self {
            Self::InOrder { pieces, .. } => pieces.iter().all(|piece| known(&piece.place)),
            Self::Listed(places) => places.iter().flatten().all(known),
        }
    }
}

fn put(bytes: &mut Vec<u8>, word: u32) {
    bytes.extend_from_slice(&word.to_le_bytes());
}

fn put_len(bytes: &mut Vec<u8>, length: usize) {
    put(bytes, u32::try_from(length).expect("a rewrite has fewer than 2^32 rows, files and bytes of a list"));
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_len(bytes, text.len());
    bytes.extend_from_slice(text.as_bytes());
}

/// `None`: not what was written.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes were taken")))
    }

    /// A number of things of at least `size` bytes each: a damaged one must not become an allocation.
    fn count(&mut self, size: usize) -> Option<usize> {
        let count = self.u32()? as usize;
        (count.checked_mul(size)? <= self.0.len()).then_some(count)
    }

    fn text(&mut self) -> Option<String> {
        let length = self.count(1)?;
        String::from_utf8(self.take(length)?.to_vec()).ok()
    }

    fn place(&mut self) -> Option<Place> {
        Some(Place { output: self.u32()?, row: self.u32()? })
    }

    fn piece(&mut self) -> Option<Piece> {
        Some(Piece { first: self.u32()?, place: self.place()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two files of ten rows each, into outputs of eight rows: rows 1, 2 and 9 of the first, none of the second dropped.
    fn packed() -> RowMap {
        let piece = |first, output, row| Piece { first, place: Place { output, row } };
        let a = FileMap::InOrder { dropped: [1, 2, 9].into_iter().collect(), pieces: vec![piece(0, 0, 0)] };
        let b = FileMap::InOrder {
            dropped: RoaringBitmap::new(),
            pieces: vec![piece(0, 0, 7), piece(1, 1, 0), piece(9, 2, 0)],
        };
        let files = BTreeMap::from([("a".to_owned(), a), ("b".to_owned(), b)]);
        RowMap { outputs: ["x", "y", "z"].map(str::to_owned).to_vec(), files }
    }

    #[test]
    fn order_gives_every_row_its_place() {
        let map = packed();
        let place = |path: &str, row| map.files[path].place(row).map(|place| (place.output, place.row));
        assert_eq!([0, 3, 8].map(|row| place("a", row)), [Some((0, 0)), Some((0, 1)), Some((0, 6))]);
        assert_eq!([0, 1, 8, 9].map(|row| place("b", row)), [Some((0, 7)), Some((1, 0)), Some((1, 7)), Some((2, 0))]);
    }

    #[test]
    fn a_dropped_row_has_no_place() {
        let map = packed();
        assert!([1, 2, 9].iter().all(|&row| map.files["a"].place(row).is_none()));
        let forwarded = map.forward("a", &[0, 1, 3, 9].into_iter().collect());
        assert_eq!(forwarded, BTreeMap::from([("x", [0, 1].into_iter().collect())]));
        assert!(map.forward("unknown", &[0].into_iter().collect()).is_empty());
    }

    #[test]
    fn a_map_is_read_as_it_was_written_and_nothing_else_is() {
        let mut map = packed();
        let places = vec![Some(Place { output: 2, row: 4 }), None, Some(Place { output: 0, row: 7 })];
        map.files.insert("c".to_owned(), FileMap::Listed(places));
        let bytes = map.encode();
        assert_eq!(RowMap::decode(&bytes), Some(map.clone()));
        for end in 0..bytes.len() {
            assert_eq!(RowMap::decode(&bytes[..end]), None, "cut at {end}");
        }
        let beyond = RowMap { outputs: vec!["x".to_owned()], ..map.clone() };
        assert_eq!(RowMap::decode(&beyond.encode()), None, "a place in an output that is not there");
        for file in map.files.values() {
            let mut bytes = Vec::new();
            file.encode(&mut bytes);
            assert_eq!(FileMap::decode(&bytes).as_ref(), Some(file));
        }
    }
}
