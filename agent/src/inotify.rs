//! What inotify says of directories, and which of it is news.

use notify::EventKind;
use notify::event::{AccessKind, AccessMode};

/// True for what comes of reading alone. Our own looks bring it about, too: a watch that looked
/// again for that would look for ever.
pub(crate) fn is_of_reading(event: &notify::Result<notify::Event>) -> bool {
    event.as_ref().is_ok_and(|event| {
        matches!(
            event.kind,
            EventKind::Access(
                AccessKind::Read | AccessKind::Open(_) | AccessKind::Close(AccessMode::Read)
            )
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use notify::{RecursiveMode, Watcher as _};

    use super::*;

    /// An empty directory that goes with the value, also when the test panics.
    struct Directory(PathBuf);

    impl Directory {
        fn make() -> Self {
            let name = format!("picket-inotify-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            // A second panic would hide the first.
            drop(fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn looking_through_a_directory_is_no_news_and_a_file_that_comes_is() {
        let directory = Directory::make();
        let (sender, receiver) = channel();
        let mut watcher = notify::recommended_watcher(move |event| {
            if !is_of_reading(&event) {
                // Nobody listens any more once the test has heard enough.
                drop(sender.send(event));
            }
        })
        .unwrap();
        watcher
            .watch(&directory.0, RecursiveMode::Recursive)
            .unwrap();
        assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 0);
        let file = directory.0.join("new.yaml");
        fs::write(&file, "").unwrap();
        let first = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        let first = first.unwrap();
        assert_eq!(first.paths, [file], "{first:?}");
    }
}
