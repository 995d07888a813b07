//! Which of QEMU's threads give way. A guest may use every processor of its node; what stops it, cuts it and lets it
//! run on must not wait for that, nor for another guest's memory that is being written: its pause would last longer.

use std::path::Path;

use rustix::process::{Pid, setpriority_process};

/// What the kernel calls niceness: a tenth of the share of a thread with none.
const GIVES_WAY: i32 = 10;
/// The guest's processors, as QEMU names their threads.
const PROCESSORS: [&str; 2] = ["CPU ", "ALL CPUs"];
/// Who writes the memory of a guest that runs on, in QEMU 7.2 and 10.
const WRITERS: [&str; 2] = ["bg_snapshot", "mig/snapshot"];

/// The threads of one QEMU that names them.
#[derive(Clone, Copy, Debug)]
pub struct Threads(Pid);

impl Threads {
    /// Those of the process.
    pub fn of(process: Pid) -> Self {
        Self(process)
    }

    /// The guest's processors give way from now on.
    pub fn processors_give_way(self) {
        self.give_way(&PROCESSORS);
    }

    /// So does who writes its memory, until that is written.
    pub fn writer_gives_way(self) {
        self.give_way(&WRITERS);
    }

    /// Best effort: without the right to do so everything works, and pauses are longer under load.
    fn give_way(self, names: &[&str]) {
        let tasks = format!("/proc/{}/task", self.0.as_raw_pid());
        for task in std::fs::read_dir(tasks).into_iter().flatten().flatten() {
            let name = thread_name(&task.path());
            if !names.iter().any(|wanted| name.starts_with(wanted)) {
                continue;
            }
            let id = task.file_name().to_str().and_then(|id| Pid::from_raw(id.parse().ok()?));
            if let Some(Err(error)) = id.map(|id| setpriority_process(Some(id), GIVES_WAY)) {
                tracing::debug!(%error, name, "a thread does not give way");
            }
        }
    }
}

fn thread_name(task: &Path) -> String {
    std::fs::read_to_string(task.join("comm")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use rustix::process::{getpid, getpriority_process};

    use super::*;

    #[test]
    fn only_the_threads_of_these_names_give_way() {
        let start = |name: &str| {
            let ((tell, told), (end, wait)) = (mpsc::channel(), mpsc::channel::<()>());
            let work = move || {
                tell.send(rustix::thread::gettid()).unwrap();
                let _ = wait.recv();
            };
            let running = thread::Builder::new().name(name.into()).spawn(work).unwrap();
            (told.recv().unwrap(), running, end)
        };
        let threads = ["CPU 0/TCG", "CPU 12/KVM", "bg_snapshot", "qemu-vmdeploy"].map(start);
        let niceness = || threads.each_ref().map(|(id, ..)| getpriority_process(Some(*id)).unwrap());
        let before = niceness();
        let own = Threads::of(getpid());
        own.processors_give_way();
        assert_eq!(niceness(), [GIVES_WAY, GIVES_WAY, before[2], before[3]]);
        own.writer_gives_way();
        assert_eq!(niceness(), [GIVES_WAY, GIVES_WAY, GIVES_WAY, before[3]]);
        for (_, running, end) in threads {
            drop(end);
            running.join().unwrap();
        }
    }
}
