//! The process that outlives ours for a moment and cleans up after it.
//!
//! Destructors do not run on `process::exit`, Ctrl-C or SIGKILL. What does happen in every case is that the kernel closes
//! our end of a pipe; so a small shell script in a process group of its own reads from that pipe, and when it ends it
//! takes down what it was told to look after.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::ProvisionError;

/// A running keeper. Dropping it lets it clean up, and waits until it has, unless it was told to keep.
#[derive(Debug)]
pub(crate) struct Keeper {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    keep: bool,
}

impl Keeper {
    /// Starts `command`, whose program is a shell script that ends after its standard input does.
    pub(crate) fn start(command: &mut Command) -> Result<Self, ProvisionError> {
        let mut child = command
            .process_group(0)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(ProvisionError::io("start a shell to look after the server"))?;
        let commands = child.stdin.take();
        let answers = child.stdout.take().ok_or_else(|| ProvisionError::Io {
            doing: "talk to the shell that looks after the server",
            source: std::io::ErrorKind::BrokenPipe.into(),
        })?;
        Ok(Self { child, commands, answers: BufReader::new(answers), keep: false })
    }

    /// Has the script carry out one command. Blocks until it is done; `false` if the script says that it failed.
    pub(crate) fn run(&mut self, command: &str) -> Result<bool, ProvisionError> {
        let talk = || ProvisionError::io("talk to the shell that looks after the server");
        let commands = self.commands.as_mut().ok_or(std::io::ErrorKind::BrokenPipe.into()).map_err(talk())?;
        writeln!(commands, "{command}").map_err(talk())?;
        let mut answer = String::new();
        match self.answers.read_line(&mut answer).map_err(talk())? {
            0 => Err(talk()(std::io::ErrorKind::UnexpectedEof.into())),
            _ => Ok(answer.trim_end() == "ok"),
        }
    }

    /// Has the script leave in place what it looks after. It may go on after us, so dropping does not wait for it.
    pub(crate) fn keep(&mut self) -> Result<(), ProvisionError> {
        self.run("keep")?;
        self.keep = true;
        Ok(())
    }

    /// The script's process number. Terminating it has it clean up.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Lets the script clean up, and waits until it is gone.
    pub(crate) fn finish(&mut self) -> Result<(), ProvisionError> {
        self.keep = false;
        self.commands = None;
        self.child.wait().map_err(ProvisionError::io("wait for the server to go"))?;
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.commands = None;
        if !self.keep {
            // Nobody to report to, and the script cleans up whether or not we see it.
            let _ = self.child.wait();
        }
    }
}
