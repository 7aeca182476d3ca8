"""What a user is told about devices and instruments, present or absent."""

import json
import os

import pytest
from fake_nvml import FakeClock, FakeGpu, FakeNvml, NVMLError_NotSupported, Trace

from effllm.results.telemetry import DeviceInfo
from effllm.telemetry import available_sources, describe_devices, describe_devices_json, device_info, devices
from effllm.telemetry.sources.base import SourceUnavailable

UUID = "GPU-aaaa0000-0000-0000-0000-000000000001"


@pytest.fixture
def fake_nvml(monkeypatch) -> FakeNvml:
    """A machine whose driver shows one fake H200, with a stranger's process on it."""
    gpu = FakeGpu(Trace([(0, 100), (9, 100)]), uuid=UUID, processes=[(os.getpid(), 1_000), (2**22 + 1, 1_000)])
    nvml = FakeNvml(FakeClock(), [gpu])
    for module in ("effllm.telemetry.devices", "effllm.telemetry.sources.nvml"):
        monkeypatch.setattr(f"{module}.load_nvml", lambda: nvml)
    monkeypatch.setattr(devices, "torch_uuid", lambda device: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return nvml


@pytest.fixture
def no_driver(monkeypatch) -> None:
    """A machine without an NVIDIA driver."""

    def refuse():
        raise SourceUnavailable("NVML does not start: NVML Shared Library Not Found")

    for module in ("effllm.telemetry.devices", "effllm.telemetry.sources.nvml"):
        monkeypatch.setattr(f"{module}.load_nvml", refuse)


def test_the_processor_is_described():
    info = device_info("cpu")
    assert info.kind == "cpu" and info.name
    assert 0 < info.cores_usable <= info.cores_total
    assert info.memory_total_gb > 0.1
    assert DeviceInfo.model_validate_json(info.model_dump_json()) == info


def test_a_cuda_device_is_described_with_limits_and_strangers(fake_nvml):
    info = device_info("cuda")
    assert (info.name, info.uuid, info.driver) == ("NVIDIA H200", UUID, "580.00")
    assert (info.power_limit_w, info.mig, info.ecc) == (700.0, False, True)
    assert info.processes == [2**22 + 1]
    assert info.reasons == {}


def test_what_a_device_refuses_to_tell_is_none_with_its_answer(fake_nvml, monkeypatch):
    def refuse(handle):
        raise NVMLError_NotSupported()

    monkeypatch.setattr(fake_nvml, "nvmlDeviceGetMigMode", refuse)
    info = device_info("cuda")
    assert info.mig is None
    assert info.reasons == {"mig": "NVML answers: Not Supported"}


def test_a_cuda_device_on_a_machine_without_driver_is_an_error_with_the_reason(no_driver):
    with pytest.raises(SourceUnavailable, match="NVML Shared Library Not Found"):
        device_info("cuda")


def test_a_machine_without_instruments_is_told_so(no_driver, monkeypatch):
    monkeypatch.setattr(devices, "OPENERS", {name: devices.OPENERS[name] for name in ("nvml", "host")})
    assert available_sources() == ["host"]
    text = describe_devices()
    assert "CUDA  none: NVML does not start: NVML Shared Library Not Found" in text
    assert "No instrument here measures energy: energy_j will be None. It is never estimated." in text


def test_a_machine_with_a_gpu_says_what_its_energy_covers(fake_nvml):
    found = describe_devices_json()
    assert found["sources"]["nvml"]["energy_scope"] == "gpu"
    assert found["sources"]["nvml"]["missing"]["module_power_average_w"].startswith("NVML answers: ")
    assert "nvml" in available_sources()
    text = describe_devices()
    assert "energy covers: gpu" in text and "No instrument here" not in text
    assert json.loads(json.dumps(found)) == found


def test_nvml_is_released_as_often_as_it_was_opened(fake_nvml):
    device_info("cuda")
    # Once for finding the device, once for asking it.
    assert fake_nvml.shutdowns == 2
