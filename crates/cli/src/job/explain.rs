//! `outlast job explain`: the chain of causes.

use outlast_proto::control::v1::ExplainJobResponse;

use crate::connection::Session;
use crate::problem::{Exit, Problem};
use crate::term::{Columns, print_one, time};

#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    /// Id or name
    job: String,
}

impl Explain {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let answer = session.client.explain_job(&self.job).await?;
        print_one(session.format, &answer, || story(&answer))?;
        Ok(Exit::Done)
    }
}

fn story(answer: &ExplainJobResponse) -> String {
    let mut columns = Columns::without_header();
    for line in &answer.lines {
        columns.row(&[time(line.at), line.attempt.clone(), line.text.clone()]);
    }
    let told = if answer.lines.is_empty() { String::new() } else { columns.finish() };
    format!("{told}now: {}\n", answer.now)
}
