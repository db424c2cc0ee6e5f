//! The job file that comes with the example is one.

use outlast_types::spec;

#[test]
fn the_job_file_is_accepted() {
    let text = include_str!("../job.yaml");
    let value: serde_json::Value = serde_norway::from_str(text).expect("YAML");
    let spec = spec::parse(&value).expect("a job file");
    assert_eq!((spec.name.as_str(), spec.shape()), ("digits", (1, 2)), "one group of two");
}
