//! Follows a file that is rotated under it: `x.log` becomes `x.log.1`, `x.log.1` becomes `x.log.2`, and so on.
//!
//! A file is known by its inode. At its end, when the name leads to another file, the writer has closed this one: it is
//! read to its end once more, and the next newer one follows.

use super::{json, local};
use flex_runtime::LogForm;
use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;
/// Rotated files looked for.
const MAX_ROTATED: usize = 9;

/// What bytes begin with.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A record, and how many bytes it takes with what frames it.
    Record(&'a [u8], usize),
    /// So many bytes that belong to no record.
    Junk(usize),
    /// Not enough to say: the beginning of a record, or nothing.
    Part,
}

/// A place between two records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Position {
    pub inode: u64,
    pub offset: u64,
}

/// What a read came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// There is nothing more now.
    End,
    /// The budget is used up.
    More,
}

/// A reader of whole records.
#[derive(Debug)]
pub struct Follow {
    path: PathBuf,
    form: LogForm,
    open: Option<Open>,
    resume: Option<Position>,
    /// Files were rotated away unread.
    pub lost_files: bool,
    /// Bytes that belonged to no record were passed over.
    pub damaged: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    inode: u64,
    /// Where `part` begins.
    start: u64,
    /// The beginning of a record.
    part: Vec<u8>,
}

impl Follow {
    /// Starts after `resume`, or with the oldest file there is.
    pub fn new(path: PathBuf, form: LogForm, resume: Option<Position>) -> Self {
        Self { path, form, open: None, resume, lost_files: false, damaged: false }
    }

    /// Hands whole records (without their frames) and the place after each to `sink`, about `budget` bytes at most.
    pub fn read(&mut self, mut budget: usize, mut sink: impl FnMut(&[u8], Position)) -> io::Result<Progress> {
        loop {
            if self.open.is_none() {
                self.open = self.open_first()?;
            }
            let Some(open) = &mut self.open else { return Ok(Progress::End) };
            if open.read(self.form, &mut self.damaged, &mut budget, &mut sink)? == Progress::More {
                return Ok(Progress::More);
            }
            let rotated = fs::metadata(&self.path).is_ok_and(|m| m.ino() != open.inode);
            if !rotated {
                return Ok(Progress::End);
            }
            // Closed by its writer by now; what came between the read and the look is read here.
            if open.read(self.form, &mut self.damaged, &mut budget, &mut sink)? == Progress::More {
                return Ok(Progress::More);
            }
            match self.open_next()? {
                Some(next) => self.open = Some(next),
                None => return Ok(Progress::End),
            }
        }
    }

    /// The files there are, oldest first.
    fn files(&self) -> io::Result<Vec<Open>> {
        let mut found = Vec::new();
        for n in (0..=MAX_ROTATED).rev() {
            match File::open(numbered(&self.path, n)) {
                Ok(file) => {
                    let inode = file.metadata()?.ino();
                    // A rotation between two looks shows a file twice.
                    if found.iter().all(|o: &Open| o.inode != inode) {
                        found.push(Open { file, inode, start: 0, part: Vec::new() });
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }

    fn open_first(&mut self) -> io::Result<Option<Open>> {
        let files = self.files()?;
        if files.is_empty() {
            return Ok(None);
        }
        let Some(resume) = self.resume.take() else { return Ok(files.into_iter().next()) };
        let known = files.iter().position(|o| o.inode == resume.inode);
        self.lost_files |= known.is_none();
        let mut open = files.into_iter().nth(known.unwrap_or(0));
        if let Some(open) = open.as_mut().filter(|o| o.inode == resume.inode) {
            // Shorter than it was: another file with the same number.
            open.start = if resume.offset <= open.file.metadata()?.len() { resume.offset } else { 0 };
        }
        Ok(open)
    }

    fn open_next(&mut self) -> io::Result<Option<Open>> {
        let current = self.open.as_ref().map(|o| o.inode);
        let files = self.files()?;
        // The newest is missing for a moment while files are renamed.
        if !self.path.exists() {
            return Ok(None);
        }
        let at = files.iter().position(|o| Some(o.inode) == current);
        self.lost_files |= at.is_none();
        Ok(files.into_iter().nth(at.map_or(0, |n| n + 1)))
    }
}

impl Open {
    fn read(
        &mut self,
        form: LogForm,
        damaged: &mut bool,
        budget: &mut usize,
        sink: &mut impl FnMut(&[u8], Position),
    ) -> io::Result<Progress> {
        let mut buffer = std::mem::take(&mut self.part);
        let mut filled = buffer.len();
        let result = loop {
            if *budget == 0 {
                break Ok(Progress::More);
            }
            buffer.resize(filled + CHUNK, 0);
            match self.file.read_at(&mut buffer[filled..], self.start + filled as u64) {
                Ok(0) => break Ok(Progress::End),
                Ok(n) => {
                    *budget = budget.saturating_sub(n);
                    filled += n;
                }
                Err(e) => break Err(e),
            }
            let used = self.take_records(&buffer[..filled], form, damaged, sink);
            buffer.copy_within(used..filled, 0);
            filled -= used;
        };
        // Not the buffer: each of many files would keep one.
        self.part = buffer[..filled].to_vec();
        result
    }

    /// Hands out the records at the beginning of these bytes, and says how many bytes are done with.
    fn take_records(&mut self, bytes: &[u8], form: LogForm, damaged: &mut bool, sink: &mut impl FnMut(&[u8], Position)) -> usize {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            let found = match form {
                LogForm::JsonFile => json::first(rest),
                LogForm::Local => local::first(rest),
            };
            let length = match found {
                Found::Record(_, length) | Found::Junk(length) => length,
                Found::Part => return at,
            };
            at += length;
            self.start += length as u64;
            match found {
                Found::Record(record, _) => sink(record, Position { inode: self.inode, offset: self.start }),
                _ => *damaged = true,
            }
        }
    }
}

fn numbered(path: &Path, n: usize) -> PathBuf {
    if n == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tail::local::tests::{Printed, any_printed, record};
    use proptest::prelude::*;
    use std::io::Write;

    struct Writer {
        path: PathBuf,
        file: File,
    }

    impl Writer {
        fn new(path: PathBuf) -> Self {
            Self { file: File::create(&path).unwrap(), path }
        }
        fn say(&mut self, text: impl AsRef<[u8]>) {
            self.file.write_all(text.as_ref()).unwrap();
        }
        fn rotate(&mut self, keep: usize) {
            for n in (0..keep).rev() {
                let _ = fs::rename(numbered(&self.path, n), numbered(&self.path, n + 1));
            }
            let _ = fs::remove_file(numbered(&self.path, keep));
            self.file = File::create(&self.path).unwrap();
        }
    }

    fn lines(follow: &mut Follow) -> (String, Option<Position>) {
        let (mut all, mut last) = (String::new(), None);
        let sink = |line: &[u8], at: Position| {
            all.push_str(std::str::from_utf8(line).unwrap());
            all.push(' ');
            last = Some(at);
        };
        assert_eq!(follow.read(usize::MAX, sink).unwrap(), Progress::End);
        (all, last)
    }

    #[test]
    fn rotations_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let mut follow = Follow::new(path.clone(), LogForm::JsonFile, None);
        assert_eq!(lines(&mut follow).0, "");
        let mut w = Writer::new(path.clone());
        w.say("a\nb");
        assert_eq!(lines(&mut follow).0, "a ");
        w.say("c\n");
        w.rotate(4);
        w.say("d\n");
        w.rotate(4);
        w.say("e\n");
        assert_eq!(lines(&mut follow).0, "bc d e ");
        w.say("f\n");
        let (got, at) = lines(&mut follow);
        assert_eq!(got, "f ");
        w.say("g\n");
        w.rotate(4);
        w.say("h\n");
        let mut resumed = Follow::new(path.clone(), LogForm::JsonFile, at);
        assert_eq!(lines(&mut resumed).0, "g h ");
        assert!(!resumed.lost_files && !follow.lost_files);
        let mut anew = Follow::new(path, LogForm::JsonFile, None);
        assert_eq!(lines(&mut anew).0, "a bc d e f g h ");
    }

    #[test]
    fn says_when_files_were_rotated_away_unread() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let mut w = Writer::new(path.clone());
        w.say("a\n");
        let mut follow = Follow::new(path, LogForm::JsonFile, None);
        let (_, at) = lines(&mut follow);
        // Held open, so that its number is not given to a new file.
        let _old = w.file.try_clone().unwrap();
        for n in 0..4 {
            w.rotate(3);
            w.say(format!("{n}\n"));
        }
        let mut resumed = Follow::new(w.path.clone(), LogForm::JsonFile, at);
        assert_eq!(lines(&mut resumed).0, "1 2 3 ");
        assert!(resumed.lost_files);
        assert_eq!(lines(&mut follow).0, "1 2 3 ");
        assert!(follow.lost_files);
    }

    #[test]
    fn a_budget_is_kept_and_the_rest_comes_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        Writer::new(path.clone()).say("line\n".repeat(100_000));
        let mut follow = Follow::new(path, LogForm::JsonFile, None);
        let (mut seen, mut rounds) = (0, 0);
        while follow.read(100_000, |_, _| seen += 1).unwrap() == Progress::More {
            rounds += 1;
        }
        assert_eq!(seen, 100_000);
        assert!(rounds >= 4);
    }

    /// What the reader is told to do between two things that the engine does.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// The next record, this share of it first, and the rest after a look.
        Say(u8),
        Rotate,
        Look,
        /// The process is killed: the next one begins after the last record that was handed out.
        Restart,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => any::<u8>().prop_map(Step::Say),
            1 => Just(Step::Rotate),
            2 => Just(Step::Look),
            1 => Just(Step::Restart),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn local_records_survive_rotations_cuts_and_restarts(steps in steps(), kinds in prop::collection::vec(any_printed(), 8), budget in 1usize..100_000) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("container.log");
            let mut w = Writer::new(path.clone());
            let mut follow = Follow::new(path.clone(), LogForm::Local, None);
            let (mut said, mut got) = (Vec::<Printed>::new(), Vec::<Printed>::new());
            let mut place = None;
            // Two rotated files are kept; the engine rotates none that is empty.
            let (mut unread, mut empty) = (0, true);
            let look = |follow: &mut Follow, got: &mut Vec<Printed>, place: &mut Option<Position>| {
                let mut sink = |message: &[u8], at: Position| {
                    let p = local::parse(message).unwrap();
                    got.push(Printed { text: p.text.into_owned(), ends: p.ends, stderr: p.stderr, micros: p.time.micros() });
                    *place = Some(at);
                };
                while follow.read(budget, &mut sink).unwrap() == Progress::More {}
            };
            for step in steps.into_iter().chain([Step::Look]) {
                match step {
                    Step::Say(share) => {
                        let printed = kinds[usize::from(share) % kinds.len()].clone();
                        let bytes = record(&printed);
                        let (first, rest) = bytes.split_at(bytes.len() * usize::from(share) / 256);
                        w.say(first);
                        if share % 2 == 0 {
                            look(&mut follow, &mut got, &mut place);
                            prop_assert_eq!(&got, &said);
                            unread = 0;
                        }
                        w.say(rest);
                        said.push(printed);
                        empty = false;
                    }
                    Step::Rotate if unread < 2 && !empty => {
                        // As `max-file=3`.
                        w.rotate(3);
                        unread += 1;
                        empty = true;
                    }
                    Step::Rotate => {}
                    Step::Look => {
                        look(&mut follow, &mut got, &mut place);
                        prop_assert_eq!(&got, &said);
                        unread = 0;
                    }
                    Step::Restart => {
                        look(&mut follow, &mut got, &mut place);
                        follow = Follow::new(path.clone(), LogForm::Local, place);
                        unread = 0;
                    }
                }
                prop_assert!(!follow.lost_files && !follow.damaged);
            }
        }
    }
}
