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
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use notify::{RecursiveMode, Watcher as _};

    use super::*;

    #[test]
    fn looking_through_a_directory_is_no_news_and_a_file_that_comes_is() {
        let directory = std::env::temp_dir().join(format!("picket-inotify-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (sender, receiver) = channel();
        let mut watcher = notify::recommended_watcher(move |event| {
            if !is_of_reading(&event) {
                sender.send(event).unwrap();
            }
        })
        .unwrap();
        watcher.watch(&directory, RecursiveMode::Recursive).unwrap();
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        fs::write(directory.join("new.yaml"), "").unwrap();
        let first = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        let read = fs::read(directory.join("new.yaml"));
        fs::remove_dir_all(&directory).unwrap();
        assert!(read.is_ok());
        let first = first.unwrap();
        assert_eq!(first.paths, [directory.join("new.yaml")], "{first:?}");
    }
}
