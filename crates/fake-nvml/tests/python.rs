//! Three independent programs read the fake library: nvidia-ml-py, nvitop and gpustat.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails where the file system or a program does"
)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

#[test]
fn nvidia_ml_py_reads_everything_it_asks_for() {
    let host = Host::new(&two_cards());
    let read = host.read_with_nvidia_ml_py();

    assert_eq!(read["driver"], "570.86.10-fake");
    assert_eq!(read["nvml"], "12.570.86.10-fake");
    assert_eq!(read["cuda"], 12080);
    assert_eq!(
        read["devices"][0],
        json!({
            "name": "Fake GeForce RTX 4090",
            "uuid": "GPU-6a1f0000-0000-4000-8000-000000000001",
            "serial": "1234567890",
            "index": 0,
            "minor": 0,
            "bus_id": "00000000:65:00.0",
            "bus_id_legacy": "0000:65:00.0",
            "by_uuid": 0,
            "by_bus_id": 0,
            "memory_v1": [24_u64 << 30, 15_u64 << 30, 9_u64 << 30],
            "memory_v2": [24_u64 << 30, 1_u64 << 30, 15_u64 << 30, 8_u64 << 30],
            "utilisation": 42,
            "temperature": 61,
            "temperature_v": 61,
            "power": 212_000,
            "power_limit": 450_000,
            "fan": 30,
            "sm_clock": 2520,
            "memory_clock": 10501,
            "mig": 0,
            "compute": [[std::process::id(), 8_u64 << 30]],
            "compute_v2": [[std::process::id(), 8_u64 << 30]],
            "graphics": [[77, null]],
        })
    );
}

#[test]
fn what_the_file_leaves_out_is_not_supported() {
    let host = Host::new(&two_cards());
    let card = &host.read_with_nvidia_ml_py()["devices"][1];

    assert_eq!(card["name"], "Fake GPU");
    assert_eq!(card["uuid"], "GPU-fa4e0000-0000-4000-8000-000000000001");
    for field in [
        "serial",
        "utilisation",
        "temperature",
        "power",
        "fan",
        "mig",
    ] {
        assert_eq!(card[field], "NVMLError_NotSupported", "{field}");
    }
    assert_eq!(card["compute"], json!([]));
}

#[test]
fn faults_arrive_as_their_own_errors() {
    for (file, error) in [
        (
            "init_fault = 'driver_mismatch'",
            "NVMLError_LibRmVersionMismatch",
        ),
        (
            "init_fault = 'driver_not_loaded'",
            "NVMLError_DriverNotLoaded",
        ),
        ("fault = 'unknown'", "NVMLError_Unknown"),
        ("[[device]]\nfault = 'lost'", "NVMLError_GpuIsLost"),
        (
            "[[device]]\nfault = 'reset_required'",
            "NVMLError_ResetRequired",
        ),
        (
            "[[device]]\nfault = 'no_permission'",
            "NVMLError_NoPermission",
        ),
        ("this is no TOML", "NVMLError_Unknown"),
    ] {
        let output = Host::new(file).python(NVIDIA_ML_PY);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{file}");
        assert!(complaint.contains(error), "{file}: {complaint}");
    }
}

#[test]
fn an_edit_changes_the_next_answer() {
    let host = Host::new("[[device]]\nmemory_used = '1GiB'");
    let script = "import os, pynvml as n\n\
        n.nvmlInit()\n\
        card = n.nvmlDeviceGetHandleByIndex(0)\n\
        before = n.nvmlDeviceGetMemoryInfo(card).used\n\
        open(os.environ['FAKE_NVML_CONFIG'], 'w').write(\"[[device]]\\nmemory_used = '2GiB'\")\n\
        print(before >> 30, n.nvmlDeviceGetMemoryInfo(card).used >> 30)";

    assert_eq!(text(&host.python(script)).trim(), "1 2");
}

#[test]
fn gpustat_reads_it() {
    let host = Host::new(&two_cards());
    let output = host.run("gpustat", &["--json"]);
    let read: Value = serde_json::from_str(&text(&output)).unwrap();

    assert_eq!(read["driver_version"], "570.86.10-fake");
    let card = &read["gpus"][0];
    assert_eq!(card["name"], "Fake GeForce RTX 4090");
    assert_eq!(card["memory.total"], 24 * 1024);
    assert_eq!(card["memory.used"], 8 * 1024);
    assert_eq!(card["temperature.gpu"], 61);
    assert_eq!(card["power.draw"], 212);
    assert_eq!(card["processes"][0]["pid"], std::process::id());
    assert_eq!(card["processes"][0]["gpu_memory_usage"], 8 * 1024);
}

#[test]
fn gpustat_goes_on_when_a_card_is_lost() {
    let host = Host::new("[[device]]\nfault = 'lost'\n[[device]]\nname = 'Well'");
    let shown = text(&host.run("gpustat", &["--no-color"]));

    assert!(shown.contains("GPU is lost"), "{shown}");
    assert!(shown.contains("Fake Well"), "{shown}");
}

#[test]
fn nvitop_reads_it() {
    let host = Host::new(&two_cards());
    let output = host.run("nvitop", &["-1", "--ascii"]);
    let shown = text(&output);

    for word in [
        "570.86.10-fake",
        "GeForce RTX 4090",
        "61C",
        "212W / 450W",
        "30%",
        "42%",
        "8192MiB / 24.00GiB",
        &std::process::id().to_string(),
    ] {
        assert!(shown.contains(word), "no `{word}` in\n{shown}");
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!complaint.contains("FunctionNotFound"), "{complaint}");
}

/// One card with everything, used by this very process, so that tools find it in /proc; one with nothing.
fn two_cards() -> String {
    format!(
        r#"
        [[device]]
        name = "GeForce RTX 4090"
        uuid = "GPU-6a1f0000-0000-4000-8000-000000000001"
        serial = "1234567890"
        pci_bus_id = "0000:65:00.0"
        memory_total = "24GiB"
        memory_reserved = "1GiB"
        utilisation_percent = 42
        temperature_c = 61
        power_mw = 212000
        power_limit_mw = 450000
        fan_percent = 30
        graphics_clock_mhz = 2520
        memory_clock_mhz = 10501
        mig = false

        [[device.process]]
        pid = {}
        memory = "8GiB"

        [[device.process]]
        pid = 77
        kind = "graphics"

        [[device]]
        "#,
        std::process::id()
    )
}

const NVIDIA_ML_PY: &str = r#"
import json
import pynvml as n

def ask(function, *arguments):
    try:
        return function(*arguments)
    except n.NVMLError_NotSupported as error:
        return type(error).__name__

def processes(function, card):
    return [[p.pid, p.usedGpuMemory] for p in function(card)]

def read(card):
    pci = n.nvmlDeviceGetPciInfo(card)
    v1 = n.nvmlDeviceGetMemoryInfo(card)
    v2 = n.nvmlDeviceGetMemoryInfo(card, n.nvmlMemory_v2)
    rates = ask(n.nvmlDeviceGetUtilizationRates, card)
    mig = ask(n.nvmlDeviceGetMigMode, card)
    again = n.nvmlDeviceGetHandleByUUID(n.nvmlDeviceGetUUID(card))
    once_more = n.nvmlDeviceGetHandleByPciBusId(pci.busId)
    return {
        "name": n.nvmlDeviceGetName(card),
        "uuid": n.nvmlDeviceGetUUID(card),
        "serial": ask(n.nvmlDeviceGetSerial, card),
        "index": n.nvmlDeviceGetIndex(card),
        "minor": n.nvmlDeviceGetMinorNumber(card),
        "bus_id": pci.busId,
        "bus_id_legacy": pci.busIdLegacy,
        "by_uuid": n.nvmlDeviceGetIndex(again),
        "by_bus_id": n.nvmlDeviceGetIndex(once_more),
        "memory_v1": [v1.total, v1.free, v1.used],
        "memory_v2": [v2.total, v2.reserved, v2.free, v2.used],
        "utilisation": getattr(rates, "gpu", rates),
        "temperature": ask(n.nvmlDeviceGetTemperature, card, n.NVML_TEMPERATURE_GPU),
        "temperature_v": ask(n.nvmlDeviceGetTemperatureV, card, n.NVML_TEMPERATURE_GPU),
        "power": ask(n.nvmlDeviceGetPowerUsage, card),
        "power_limit": ask(n.nvmlDeviceGetEnforcedPowerLimit, card),
        "fan": ask(n.nvmlDeviceGetFanSpeed, card),
        "sm_clock": ask(n.nvmlDeviceGetClockInfo, card, n.NVML_CLOCK_SM),
        "memory_clock": ask(n.nvmlDeviceGetClockInfo, card, n.NVML_CLOCK_MEM),
        "mig": mig if isinstance(mig, str) else mig[0],
        "compute": processes(n.nvmlDeviceGetComputeRunningProcesses, card),
        "compute_v2": processes(n.nvmlDeviceGetComputeRunningProcesses_v2, card),
        "graphics": processes(n.nvmlDeviceGetGraphicsRunningProcesses, card),
    }

n.nvmlInit()
print(json.dumps({
    "driver": n.nvmlSystemGetDriverVersion(),
    "nvml": n.nvmlSystemGetNVMLVersion(),
    "cuda": n.nvmlSystemGetCudaDriverVersion(),
    "devices": [
        read(n.nvmlDeviceGetHandleByIndex(i)) for i in range(n.nvmlDeviceGetCount())
    ],
}))
n.nvmlShutdown()
"#;

/// A directory in which programs find the fake library under the real name.
struct Host {
    directory: TempDir,
    programs: PathBuf,
}

impl Host {
    fn new(config: &str) -> Self {
        let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/python/bin");
        assert!(
            programs.join("gpustat").exists(),
            "no Python programs in `target/python`: run `scripts/python-env.sh` first"
        );
        let directory = TempDir::new().unwrap();
        let link = directory.path().join("libnvidia-ml.so.1");
        symlink(fake_nvml::built_library(), link).unwrap();
        fs::write(directory.path().join("nvml.toml"), config).unwrap();
        Self {
            directory,
            programs,
        }
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(self.programs.join(program))
            .args(arguments)
            .env("LD_LIBRARY_PATH", self.directory.path())
            .env("FAKE_NVML_CONFIG", self.directory.path().join("nvml.toml"))
            .env("PYTHONIOENCODING", "utf-8")
            .env("COLUMNS", "120")
            .output()
            .unwrap()
    }

    fn python(&self, script: &str) -> Output {
        self.run("python", &["-c", script])
    }

    fn read_with_nvidia_ml_py(&self) -> Value {
        serde_json::from_str(&text(&self.python(NVIDIA_ML_PY))).unwrap()
    }
}

/// What a program that must succeed has printed.
fn text(output: &Output) -> String {
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {complaint}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
