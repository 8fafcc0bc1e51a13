//! Follows a file that is rotated under it: `x.log` becomes `x.log.1`, `x.log.1` becomes `x.log.2`, and so on.
//!
//! A file is known by its inode. At its end, when the name leads to another file, the writer has closed this one: it is
//! read to its end once more, and the next newer one follows.

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
/// A line longer than this is not the engine's: skipped.
const MAX_RAW: usize = 1 << 20;

/// A place between two lines.
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

/// A reader of whole lines.
#[derive(Debug)]
pub struct Follow {
    path: PathBuf,
    open: Option<Open>,
    resume: Option<Position>,
    /// Files were rotated away unread.
    pub lost_files: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    inode: u64,
    /// Where the line in `part` starts.
    line_start: u64,
    /// The beginning of a line.
    part: Vec<u8>,
}

impl Follow {
    /// Starts after `resume`, or with the oldest file there is.
    pub fn new(path: PathBuf, resume: Option<Position>) -> Self {
        Self { path, open: None, resume, lost_files: false }
    }

    /// Hands whole lines (without their ends) and the place after each to `sink`, about `budget` bytes at most.
    pub fn read(&mut self, mut budget: usize, mut sink: impl FnMut(&[u8], Position)) -> io::Result<Progress> {
        loop {
            if self.open.is_none() {
                self.open = self.open_first()?;
            }
            let Some(open) = &mut self.open else { return Ok(Progress::End) };
            if open.read(&mut budget, &mut sink)? == Progress::More {
                return Ok(Progress::More);
            }
            let rotated = fs::metadata(&self.path).is_ok_and(|m| m.ino() != open.inode);
            if !rotated {
                return Ok(Progress::End);
            }
            // Closed by its writer by now; what came between the read and the look is read here.
            if open.read(&mut budget, &mut sink)? == Progress::More {
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
                        found.push(Open { file, inode, line_start: 0, part: Vec::new() });
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
            open.line_start = if resume.offset <= open.file.metadata()?.len() { resume.offset } else { 0 };
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
    fn read(&mut self, budget: &mut usize, sink: &mut impl FnMut(&[u8], Position)) -> io::Result<Progress> {
        let mut chunk = vec![0; CHUNK];
        loop {
            if *budget == 0 {
                return Ok(Progress::More);
            }
            let n = self.file.read_at(&mut chunk, self.line_start + self.part.len() as u64)?;
            if n == 0 {
                return Ok(Progress::End);
            }
            *budget = budget.saturating_sub(n);
            let mut rest = &chunk[..n];
            while let Some(end) = memchr::memchr(b'\n', rest) {
                let (line, more) = rest.split_at(end);
                self.line_start += (self.part.len() + end + 1) as u64;
                let place = Position { inode: self.inode, offset: self.line_start };
                if self.part.is_empty() {
                    sink(line, place);
                } else {
                    self.part.extend_from_slice(line);
                    sink(&self.part, place);
                    self.part.clear();
                }
                rest = &more[1..];
            }
            self.part.extend_from_slice(rest);
            if self.part.len() > MAX_RAW {
                self.line_start += self.part.len() as u64;
                self.part.clear();
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
    use std::io::Write;

    struct Writer {
        path: PathBuf,
        file: File,
    }

    impl Writer {
        fn new(path: PathBuf) -> Self {
            Self { file: File::create(&path).unwrap(), path }
        }
        fn say(&mut self, text: &str) {
            self.file.write_all(text.as_bytes()).unwrap();
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
        let mut follow = Follow::new(path.clone(), None);
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
        let mut resumed = Follow::new(path.clone(), at);
        assert_eq!(lines(&mut resumed).0, "g h ");
        assert!(!resumed.lost_files && !follow.lost_files);
        let mut anew = Follow::new(path, None);
        assert_eq!(lines(&mut anew).0, "a bc d e f g h ");
    }

    #[test]
    fn says_when_files_were_rotated_away_unread() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let mut w = Writer::new(path.clone());
        w.say("a\n");
        let mut follow = Follow::new(path, None);
        let (_, at) = lines(&mut follow);
        // Held open, so that its number is not given to a new file.
        let _old = w.file.try_clone().unwrap();
        for n in 0..4 {
            w.rotate(3);
            w.say(&format!("{n}\n"));
        }
        let mut resumed = Follow::new(w.path.clone(), at);
        assert_eq!(lines(&mut resumed).0, "1 2 3 ");
        assert!(resumed.lost_files);
        assert_eq!(lines(&mut follow).0, "1 2 3 ");
        assert!(follow.lost_files);
    }

    #[test]
    fn a_budget_is_kept_and_the_rest_comes_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        Writer::new(path.clone()).say(&"line\n".repeat(100_000));
        let mut follow = Follow::new(path, None);
        let (mut seen, mut rounds) = (0, 0);
        while follow.read(100_000, |_, _| seen += 1).unwrap() == Progress::More {
            rounds += 1;
        }
        assert_eq!(seen, 100_000);
        assert!(rounds >= 4);
    }
}
