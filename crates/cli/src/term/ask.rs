//! The question before something that kills work.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use crate::problem::{Exit, Problem};

/// Goes on when `--yes` was given or a person at the terminal says so.
pub(crate) fn confirm(yes: bool, what: &str) -> Result<(), Problem> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Problem::new(Exit::Usage, format!("not done: {what}"))
            .because("this kills work, and nobody is at the terminal to be asked")
            .next("say --yes if that is what you want"));
    }
    let mut err = io::stderr().lock();
    let asked = write!(err, "{what}. Go on? [y/N] ").and_then(|()| err.flush());
    let mut answer = String::new();
    let read = asked.and_then(|()| io::stdin().lock().read_line(&mut answer));
    match (read, answer.trim().to_lowercase().as_str()) {
        (Ok(_), "y" | "yes") => Ok(()),
        _ => Err(Problem::new(Exit::Usage, "nothing was done").because("the answer was not yes")),
    }
}
