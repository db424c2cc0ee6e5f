//! What this machine has to give: found, then overridden by the configuration.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use outlast_types::{ByteSize, GpuDevice, NodeResources};

use crate::config::ResourceOverrides;

/// A driver that does not answer must not keep the agent from starting.
const SMI_TIMEOUT: Duration = Duration::from_secs(5);
/// Left to the machine itself; a node that promises its last byte is killed by the kernel.
const MEMORY_RESERVE_PER_CENT: u64 = 5;

/// # Errors
/// When `/proc/meminfo` cannot be read and no memory is configured.
pub(crate) async fn detect(overrides: &ResourceOverrides) -> io::Result<NodeResources> {
    let cpus = overrides.cpus.map(|cpus| (cpus * 1_000.0).round() as u64);
    let memory = match overrides.memory {
        Some(memory) => memory,
        None => detected_memory()?,
    };
    Ok(NodeResources {
        cpu_millis: cpus.unwrap_or_else(detected_cpu_millis),
        memory,
        gpus: gpus(overrides.gpus).await,
        custom: overrides.custom.clone(),
    })
}

fn detected_cpu_millis() -> u64 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u64) * 1_000
}

fn detected_memory() -> io::Result<ByteSize> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let total = mem_total(&text).ok_or_else(|| io::Error::other("/proc/meminfo names no MemTotal"))?;
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit =
        limits.iter().filter_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok()).min();
    let usable = total.min(limit.unwrap_or(total));
    Ok(ByteSize(usable - usable / 100 * MEMORY_RESERVE_PER_CENT))
}

fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

async fn gpus(wanted: Option<u32>) -> Vec<GpuDevice> {
    if wanted == Some(0) {
        return Vec::new();
    }
    let mut found = driver_gpus(Path::new("/proc/driver/nvidia/gpus"));
    if found.is_empty() {
        found = smi_gpus().await;
    }
    match wanted {
        None => found,
        Some(count) => {
            let model = |index: u32| found.get(index as usize).map_or("unknown", |gpu| gpu.model.as_str());
            (0..count).map(|index| GpuDevice { index, model: model(index).to_owned() }).collect()
        }
    }
}

/// One folder a device, named after its bus address; CUDA counts in that order when told `PCI_BUS_ID`.
fn driver_gpus(dir: &Path) -> Vec<GpuDevice> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut folders: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    folders.sort();
    let model = |path: &Path| {
        let text = fs::read_to_string(path.join("information")).unwrap_or_default();
        let model = text.lines().find_map(|line| line.strip_prefix("Model:"));
        model.map_or_else(|| "unknown".to_owned(), |model| model.trim().to_owned())
    };
    (0..).zip(&folders).map(|(index, path)| GpuDevice { index, model: model(path) }).collect()
}

async fn smi_gpus() -> Vec<GpuDevice> {
    let mut command = tokio::process::Command::new("nvidia-smi");
    command.arg("-L").kill_on_drop(true).stdin(std::process::Stdio::null());
    match tokio::time::timeout(SMI_TIMEOUT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => parse_smi(&String::from_utf8_lossy(&output.stdout)),
        Ok(_) => Vec::new(),
        Err(_) => {
            tracing::warn!("nvidia-smi did not answer within {SMI_TIMEOUT:?}: no GPUs are offered");
            Vec::new()
        }
    }
}

/// Lines like `GPU 0: NVIDIA H200 (UUID: GPU-…)`.
fn parse_smi(text: &str) -> Vec<GpuDevice> {
    let gpu = |line: &str| {
        let (index, rest) = line.strip_prefix("GPU ")?.split_once(':')?;
        let model = rest.split(" (UUID").next()?.trim().to_owned();
        Some(GpuDevice { index: index.trim().parse().ok()?, model })
    };
    text.lines().filter_map(gpu).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_read_from_what_the_kernel_and_the_driver_say() {
        assert_eq!(mem_total("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        let gpus = parse_smi("GPU 0: NVIDIA H200 (UUID: GPU-1)\nGPU 1: NVIDIA H200 (UUID: GPU-2)\nnoise\n");
        assert_eq!(gpus.len(), 2);
        assert_eq!((gpus[1].index, gpus[1].model.as_str()), (1, "NVIDIA H200"));
    }

    #[tokio::test]
    async fn the_configuration_wins() {
        let overrides = ResourceOverrides {
            cpus: Some(1.5),
            memory: Some(ByteSize(9)),
            gpus: Some(2),
            ..Default::default()
        };
        let found = detect(&overrides).await.expect("detects");
        assert_eq!((found.cpu_millis, found.memory.0, found.gpus.len()), (1_500, 9, 2));
    }
}
