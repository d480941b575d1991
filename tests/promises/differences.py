# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of differences: one row is one thing that is other on the destination.

A machine is a dictionary of parts, each of which is some options of QEMU. What differs
is written as a change of parts: "+a=b" adds a property to a part, None takes the part
away, and anything else stands in its place, or is a new part at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Optional

Parts = Mapping[str, str]
Change = Mapping[str, Optional[str]]

DISK_MIB = 4


def disk(node: str, mib: int = DISK_MIB, more: str = "") -> str:
    """DIR is where this guest's disks are; they are larger than what a guest sees."""
    return (f"-blockdev driver=raw,node-name={node},size={mib << 20},file.driver=file,"
            f"file.filename=DIR/{node}.img{more}")


def edit(parts: Parts, change: Change) -> dict[str, str]:
    result = dict(parts)
    for name, what in change.items():
        if what is None:
            del result[name]
        elif what.startswith("+"):
            result[name] += f",{what[1:]}"
        else:
            result[name] = what
    return result


# The machines

SPARE = "-device pcie-root-port,id=spare,addr=f,chassis=2,slot=11"

_VIRTIO = {
    "vda": disk("vda"),
    "blk": "-device virtio-blk-pci,id=blk,addr=4,drive=vda,num-queues=2",
    "sda": disk("sda"),
    "scsi": "-device virtio-scsi-pci,id=scsi,addr=5,num_queues=2",
    "sd": "-device scsi-hd,id=sd,bus=scsi.0,drive=sda",
    "serial": "-device virtio-serial-pci,id=serial,addr=6",
    "console": "-chardev null,id=c0 -device virtconsole,bus=serial.0,chardev=c0,nr=0",
    "rng": "-device virtio-rng-pci,addr=7",
    "balloon": "-device virtio-balloon-pci,addr=8",
}

_Q35 = {
    "machine": "-machine q35",
    "memory": "-m 128",
    "smp": "-smp 2",
    "cpu": "-cpu max",
    "nics": "-netdev hubport,id=n0,hubid=0 -netdev hubport,id=n1,hubid=0",
    "port": "-device pcie-root-port,id=rp,addr=2,chassis=1,slot=10",
    "net": "-device virtio-net-pci,id=net,bus=rp,netdev=n0,mac=52:54:00:00:00:01,romfile=",
    "net2": "-device virtio-net-pci,addr=3,netdev=n1,mac=52:54:00:00:00:02,romfile=",
    **_VIRTIO,
    "gpu": "-device virtio-gpu-pci,addr=9",
    "e1000e": "-device e1000e,addr=a,mac=52:54:00:00:00:03,romfile=",
    "xhci": "-device qemu-xhci,addr=b",
    "tablet": "-device virtio-tablet-pci,addr=c",
    "vga": "-device VGA,addr=d",
}

_PC = {
    "machine": "-machine pc",
    "memory": "-m 128",
    "smp": "-smp 2",
    "cpu": "-cpu max",
    "vda": disk("vda"),
    "blk": "-device virtio-blk-pci,id=blk,addr=4,drive=vda",
    "hda": disk("hda"),
    "ide": "-device ide-hd,drive=hda,bus=ide.0,unit=0",
    "cirrus": "-device cirrus-vga,addr=5",
    "usb": "-device piix3-usb-uhci,id=usb,addr=6",
    "stick-medium": disk("stick"),
    "stick": "-device usb-storage,bus=usb.0,drive=stick",
}

_TAP = edit(_Q35, {
    "nics": "-netdev tap,id=n0,ifname=tap0,script=no,downscript=no,queues=2",
    "net": "+mq=on",
    "net2": None,
})
HUB_FOR_TAP = "-netdev hubport,id=n0,hubid=0"
ONE_QUEUE_FOR_TAP = "-netdev tap,id=n0,ifname=tap0,script=no,downscript=no"

_NUMA = edit(_Q35, {
    "memory": "-m 128 -object memory-backend-ram,id=m0,size=64M"
              " -object memory-backend-ram,id=m1,size=64M"
              " -numa node,memdev=m0,cpus=0 -numa node,memdev=m1,cpus=1"})
_NUMA_EXCHANGED = (_NUMA["memory"].replace("memdev=m0", "memdev=x").replace("memdev=m1", "memdev=m0")
                   .replace("memdev=x", "memdev=m1"))

_DIMMS = edit(_Q35, {
    "memory": "-m 128,slots=2,maxmem=512M -object memory-backend-ram,id=m0,size=128M"
              " -object memory-backend-ram,id=m1,size=128M",
    "dimm0": "-device pc-dimm,id=dimm0,memdev=m0",
    "dimm1": "-device pc-dimm,id=dimm1,memdev=m1"})

_VIRTIO_MEM = edit(_Q35, {
    "memory": "-m 256,maxmem=512M -object memory-backend-ram,id=vm,size=128M",
    "virtio-mem": "-device virtio-mem-pci,id=mem,addr=e,memdev=vm,requested-size=128M,block-size=2M"})

# The guest asks for the primary, which is a device of the port, and of nobody's yet.
_FAILOVER = edit(_Q35, {
    "net": "+failover=on",
    "spare": SPARE,
    "primary": "-device e1000e,id=primary,bus=spare,failover_pair_id=net,mac=52:54:00:00:00:01,romfile=",
})

_WITNESSES = "vda,sda,hvc0,hwrng"


class Base(NamedTuple):
    """What a row changes, and what the guest in it uses."""

    parts: Parts
    witness: str = f"{_WITNESSES},eth0:eth1"
    tap: bool = False
    plugged: str = ""       # a device that has to be there before anything else is done
    # QEMU 10.0 aborts, with TCG, when it sends RAM of a machine whose first block is not its largest
    can_be_saved: bool = True


BASES = {
    "q35": Base(_Q35),
    "pc": Base(_PC, "vda,sda"),
    "tap": Base(_TAP, f"{_WITNESSES},eth0", tap=True),
    "numa": Base(_NUMA),
    "dimms": Base(_DIMMS),
    "virtio-mem": Base(_VIRTIO_MEM, can_be_saved=False),
    "failover": Base(_FAILOVER, _WITNESSES, plugged="primary"),
}


# What is expected

# ... over main: what becomes of the migration and of the guest.
EARLY = "fails before RAM"      # has been sent; the guest runs on
LATE = "fails after RAM"
HARM = "the guest is harmed"    # it has moved, and crashes, hangs, or loses a device
LIVES = "the guest lives"
MOVED = "completes"             # there is nobody who could be harmed
DEATH = f"{LATE}, or {HARM}"    # which of them is a matter of chance


class Expected(NamedTuple):
    """An issue that the handshake has to tell, and in which words."""

    severity: str       # "error", "warning", or "" for no issue at all
    codes: frozenset[str] = frozenset()
    device: str = ""    # both are looked for in what is told
    cause: str = ""


NOTHING = Expected("")


def error(codes: str, device: str, cause: str) -> Expected:
    return Expected("error", frozenset(codes.split()), device, cause)


def warning(codes: str, device: str, cause: str) -> Expected:
    return Expected("warning", frozenset(codes.split()), device, cause)


class Row(NamedTuple):
    name: str
    there: Change
    expected: Expected
    main: str
    base: str = "q35"
    here: Change = {}       # of the source, from the base; the destination has the same
    back: Change = {}       # of the source alone: the way round is the other one
    gate: bool = False      # what is reported most, and what is the only one of its kind
    os: bool = True         # or only the firmware

    @property
    def source(self) -> dict[str, str]:
        return edit(edit(BASES[self.base].parts, self.here), self.back)

    @property
    def destination(self) -> dict[str, str]:
        return edit(edit(BASES[self.base].parts, self.here), self.there)


NET, BLK, SCSI = "00:02.0:00.0/virtio-net|virtio-net", "00:04.0/virtio-blk", "00:05.0/virtio-scsi"
MSIX = "MSI-X"
HEADER = "PCI configuration.*header"     # a class, a BAR, the first capability
GONE = "destination (has|lacks)|Unknown|missing|no such"


def feature(device: str, name: str) -> Expected:
    return error("device", device, f"VIRTIO_\\w*{name}")


def pci(device: str, cause: str) -> Expected:
    return error("device", device, cause)


_CPU = [
    Row("CPU: no AVX2", {"cpu": "-cpu max,avx2=off"}, error("cpu", "CPU|cpu", "avx2"), HARM,
        gate=True),
    Row("CPU: no SSE4.2", {"cpu": "-cpu max,sse4.2=off"}, error("cpu", "CPU|cpu", "sse4.2"), HARM),
    Row("CPU: no SMEP and SMAP", {"cpu": "-cpu max,smep=off,smap=off"},
        error("cpu", "CPU|cpu", "sm[ae]p"), HARM),
    Row("CPU: no x2APIC (not used)", {"cpu": "-cpu max,x2apic=off"},
        error("cpu", "CPU|cpu", "x2apic"), LIVES),
    Row("CPU: qemu64 for max", {"cpu": "-cpu qemu64"},
        error("cpu", "CPU|cpu", "which CPUs"), HARM),
    Row("CPU: Skylake-Client for max (has what this guest uses)", {"cpu": "-cpu Skylake-Client"},
        error("cpu", "CPU|cpu", "which CPUs"), LIVES),
    Row("CPU: max for qemu64", {"cpu": "-cpu max"}, warning("cpu", "CPU|cpu", "qemu64"), LIVES,
        back={"cpu": "-cpu qemu64"}),
    Row("CPU: address of 36 bits", {"cpu": "-cpu max,phys-bits=36"},
        warning("cpu", "CPU|cpu", "phys-bits"), LIVES),
    Row("CPU: other model name", {"cpu": "-cpu max,model-id=other"},
        warning("cpu", "CPU|cpu", "model-id"), LIVES),
    Row("CPU: other vendor", {"cpu": "-cpu max,vendor=GenuineIntel"},
        warning("cpu", "CPU|cpu", "vendor"), LIVES),
    Row("CPU: with a PMU", {"cpu": "-cpu max,pmu=on"}, NOTHING, LIVES),
    Row("2 CPUs for 1", {"smp": "-smp 2"}, error("device section-schema", "ICH9LPC|cpu", "CPUs|cpus"),
        LATE, back={"smp": "-smp 1"}),
    Row("1 CPU for 2", {"smp": "-smp 1"}, error("section-missing", "cpu|apic", GONE), LATE),
    Row("4 CPUs for 2", {"smp": "-smp 4"}, error("device section-schema", "ICH9LPC|cpu", "CPUs|cpus"),
        LATE, gate=True),
    Row("room for 4 CPUs", {"smp": "-smp 2,maxcpus=4"},
        error("device section-schema", "ICH9LPC|cpu", "CPUs|cpus"), LATE),
    Row("pc: room for 4 CPUs", {"smp": "-smp 2,maxcpus=4"},
        error("device section-schema", "piix4_pm|cpu", "CPUs|cpus"), LATE, base="pc"),
]

_NETWORK = [
    Row("virtio-net: vectors=8", {"net": "+vectors=8"}, pci(NET, MSIX), LATE, gate=True),
    Row("virtio-net: no MRG_RXBUF", {"net": "+mrg_rxbuf=off"}, feature(NET, "MRG_RXBUF"), LATE),
    Row("virtio-net: no control queue", {"net": "+ctrl_vq=off"}, feature(NET, "CTRL_VQ"), LATE),
    Row("virtio-net: no EVENT_IDX", {"net": "+event_idx=off"}, feature(NET, "EVENT_IDX"), LATE),
    Row("virtio-net: no indirect descriptors", {"net": "+indirect_desc=off"},
        feature(NET, "INDIRECT_DESC"), LATE),
    Row("virtio-net: packed rings offered", {"net": "+packed=on"}, NOTHING, LIVES),
    Row("virtio-net: packed rings in use, not offered", {}, feature(NET, "RING_PACKED"), LATE,
        back={"net": "+packed=on"}),
    Row("virtio-net: IOMMU offered", {"net": "+iommu_platform=on"}, NOTHING, LIVES),
    Row("virtio-net: IOMMU in use, not offered", {}, feature(NET, "ACCESS_PLATFORM|IOMMU_PLATFORM"),
        LATE, back={"net": "+iommu_platform=on"}),
    Row("virtio-net: with the legacy interface", {"net": "+disable-legacy=off"},
        pci(NET, HEADER), LATE),
    Row("virtio-net: only the legacy interface", {"net": "+disable-legacy=off,disable-modern=on"},
        feature(NET, "VERSION_1|PCI configuration"), LATE),
    Row("virtio-net: with ATS", {"net": "+ats=on"}, pci(NET, "ATS"), LATE),
    Row("virtio-net: notification by I/O port", {"net": "+modern-pio-notify=on"},
        pci(NET, HEADER), LATE),
    Row("virtio-net: another MAC", {"net2": "+mac=52:54:00:00:00:99"}, NOTHING, LIVES),
    Row("virtio-net: larger queues", {"net": "+rx_queue_size=512"}, NOTHING, LIVES),
    Row("virtio-net: no multiqueue", {"net": "+mq=off"}, feature(NET, "MQ"), LATE, base="tap"),
    Row("virtio-net: one queue for two", {"nics": ONE_QUEUE_FOR_TAP}, pci(NET, MSIX), LATE,
        base="tap"),
    Row("virtio-net: one queue for two, with vectors=6", {"nics": ONE_QUEUE_FOR_TAP,
                                                         "net": "+vectors=6"},
        error("device section-schema", NET, "queue"), LATE, base="tap", here={"net": "+vectors=6"}),
    Row("virtio-net: a network without vnet_hdr", {"nics": HUB_FOR_TAP},
        feature(NET, "CSUM|TSO|MQ"), LATE, base="tap"),
    Row("virtio-net: a network without vnet_hdr, with vectors=6", {"nics": HUB_FOR_TAP},
        feature(NET, "CSUM|TSO|MQ"), LATE, base="tap", here={"net": "+vectors=6"}),
    Row("virtio-net: RSS offered", {"net": "+rss=on"}, NOTHING, LIVES, base="tap"),
    Row("virtio-net: USO not offered, and not used", {"net": "+guest_uso4=off,guest_uso6=off"},
        NOTHING, LIVES, base="tap"),
    Row("e1000e: another subsystem", {"e1000e": "+subsys_ven=0x1234"},
        error("device section-schema", "e1000e", "subsys"), LATE, gate=True),
    Row("e1000e: another MAC", {"e1000e": "+mac=52:54:00:00:00:99"},
        pci("e1000e", "serial number"), LATE),
    Row("failover: the same", {}, NOTHING, LIVES, base="failover"),
    Row("failover: the primary has a ROM, on both sides", {},
        error("ram-block-missing unmigratable", "rom", "romfile"), EARLY, base="failover",
        here={"primary": _FAILOVER["primary"].removesuffix(",romfile=")}),
    Row("e1000e: an e1000 in its place", {"e1000e": "-device e1000,addr=a,romfile="},
        error("section-missing", "e1000e", GONE), LATE),
]

_DISKS = [
    Row("virtio-blk: no discard", {"blk": "+discard=off"}, feature(BLK, "DISCARD"), LATE, gate=True),
    Row("virtio-blk: no write-zeroes", {"blk": "+write-zeroes=off"}, feature(BLK, "WRITE_ZEROES"),
        LATE),
    Row("virtio-blk: cache mode fixed", {"blk": "+config-wce=off"}, feature(BLK, "CONFIG_WCE"), LATE),
    Row("virtio-blk: one queue for two", {"blk": "+num-queues=1"}, error("device", BLK, f"{MSIX}|queue"),
        LATE, gate=True),
    Row("virtio-blk: one queue for two, vectors the same", {"blk": "+num-queues=1"},
        error("device", BLK, "queue|_MQ"), LATE, here={"blk": "+vectors=3"}),
    Row("virtio-blk: two queues for one", {}, pci(BLK, MSIX), LATE, back={"blk": "+num-queues=1"}),
    Row("virtio-blk: seg-max fixed", {"blk": "+seg-max-adjust=off"}, NOTHING, LIVES),
    Row("virtio-blk: smaller rings", {"blk": "+queue-size=64"}, NOTHING, LIVES),
    Row("virtio-blk: a disk of half the size", {"vda": disk("vda", DISK_MIB // 2)},
        warning("disk", BLK, "size|MiB|bytes|smaller"), HARM, gate=True),
    Row("virtio-blk: a disk of twice the size", {"vda": disk("vda", 2 * DISK_MIB)}, NOTHING, LIVES),
    Row("virtio-blk: a disk that cannot be written", {"vda": disk("vda", more=",read-only=on")},
        error("disk", BLK, "written|read-only"), HARM, gate=True),
    Row("virtio-blk: another serial", {"blk": "+serial=other"}, warning("disk", BLK, "serial"), LIVES,
        here={"blk": "+serial=one"}),
    Row("virtio-blk: blocks of 4096", {"blk": "+logical_block_size=4096,physical_block_size=4096"},
        warning("disk", BLK, "block"), LIVES),
    Row("virtio-blk: discard not offered, no driver yet", {"blk": "+discard=off"}, NOTHING, MOVED,
        os=False),
    Row("virtio-blk: cache mode fixed, no driver yet", {"blk": "+config-wce=off"}, NOTHING, MOVED,
        os=False),
    Row("virtio-net: no MRG_RXBUF, no driver yet", {"net": "+mrg_rxbuf=off"}, NOTHING, MOVED,
        os=False),
    Row("virtio-scsi: one queue for two", {"scsi": "+num_queues=1"},
        error("device", SCSI, f"{MSIX}|queue"), LATE),
    Row("virtio-scsi: one queue for two, vectors the same", {"scsi": "+num_queues=1"},
        error("device", SCSI, "queue"), HARM, here={"scsi": "+vectors=5"}),
    Row("virtio-scsi: no hotplug", {"scsi": "+hotplug=off"}, feature(SCSI, "HOTPLUG"), LATE),
    Row("virtio-scsi: smaller requests", {"scsi": "+max_sectors=128"}, NOTHING, LIVES),
    Row("scsi-hd: another LUN", {"sd": "+lun=1"}, error("section-missing", "scsi-disk|05.0", GONE),
        LATE),
    Row("scsi-hd: another serial", {"sd": "+serial=other"}, warning("disk", "scsi", "serial"), LIVES,
        here={"sd": "+serial=one"}),
    Row("scsi-hd: a disk that cannot be written", {"sda": disk("sda", more=",read-only=on")},
        error("disk", "scsi-disk|05.0", "written|read-only"), HARM),
    Row("scsi-hd: a disk of half the size", {"sda": disk("sda", DISK_MIB // 2)},
        warning("disk", "scsi", "size|MiB|bytes|smaller"), HARM),
    Row("scsi-hd: a CD in its place", {"sd": "-device scsi-cd,id=sd,bus=scsi.0,drive=sda"},
        error("device disk", "scsi", "scsi-cd|written|read-only"), HARM),
    Row("scsi-hd: missing", {"sda": None, "sd": None},
        error("section-missing", "scsi-disk|05.0", GONE), LATE),
    Row("IDE: a CD for a disk", {"ide": "-device ide-cd,drive=hda,bus=ide.0,unit=0"},
        error("device disk", "ide", "ide-cd|CD|written|read-only"), HARM, base="pc"),
    Row("IDE: the disk on another unit", {"ide": "-device ide-hd,drive=hda,bus=ide.0,unit=1"},
        error("device disk", "ide", "missing|no disk|unit|medium|drive"), HARM, base="pc"),
    Row("IDE: the disk is missing", {"hda": None, "ide": None},
        error("device disk", "ide", "missing|no disk|medium|drive"), HARM, base="pc"),
    Row("IDE: a disk of half the size", {"hda": disk("hda", DISK_MIB // 2)},
        warning("disk", "ide", "size|MiB|bytes|smaller"), HARM, base="pc"),
    Row("usb-storage: a disk of half the size", {"stick-medium": disk("stick", DISK_MIB // 2)},
        warning("disk", "usb|scsi", "size|MiB|bytes|smaller"), LIVES, base="pc"),
]

_MEMORY = [
    Row("NUMA: memory backends exchanged", {"memory": _NUMA_EXCHANGED},
        error("ram-block-address", "m[01]", "0x"), DEATH, base="numa"),
    Row("DIMMs in another order", {"dimm0": _DIMMS["dimm1"], "dimm1": _DIMMS["dimm0"]},
        error("ram-block-address", "m[01]", "0x"), DEATH, base="dimms"),
    Row("less RAM below 4 GiB", {"machine": "+max-ram-below-4g=64M"},
        error("ram-block-address", "pc.ram", "0x"), DEATH),
    Row("slots for DIMMs", {"memory": "-m 128,slots=2,maxmem=256M"},
        error("section-schema device", "ICH9LPC", "devs|slots"), LATE),
    Row("more RAM", {"memory": "-m 160"}, error("ram-block-size", "pc.ram", "MiB|size|0x|\\d{7}"),
        EARLY),
    Row("a memory backend of another name",
        {"machine": "-machine q35,memory-backend=b",
         "memory": "-m 128 -object memory-backend-ram,id=b,size=128M"},
        error("ram-block-missing", "'a'", "RAM|block|memory"), EARLY,
        here={"machine": "-machine q35,memory-backend=a",
              "memory": "-m 128 -object memory-backend-ram,id=a,size=128M"}),
    Row("virtio-mem: larger blocks", {"virtio-mem": "+block-size=4M"},
        error("device section-schema", "virtio-mem", "block-size|block size|bitmap"), EARLY,
        base="virtio-mem"),
]

_VIRTIO_ROWS = [
    Row("virtio-serial: a port is absent", {"console": None}, error("device", "virtio-console|06.0", "port"),
        LATE, gate=True),
    Row("virtio-serial: the port has another number", {"console": "+nr=3"},
        error("device", "virtio-console|06.0", "port"), LATE),
    Row("virtio-serial: no emergency write", {"serial": "+emergency-write=off"}, NOTHING, LIVES),
    Row("virtio-serial: fewer ports possible", {"serial": "+max_ports=16"}, NOTHING, LIVES,
        here={"serial": "+vectors=2"}),
    Row("virtio-gpu: two outputs for one", {"gpu": "+max_outputs=2"},
        error("device section-schema", "virtio-gpu|09.0", "outputs"), LATE, gate=True),
    Row("virtio-gpu: another resolution", {"gpu": "+xres=800,yres=600"}, NOTHING, LIVES),
    Row("virtio-gpu: no EDID", {"gpu": "+edid=off"}, NOTHING, LIVES),
    Row("virtio-gpu: a virtio-vga in its place", {"gpu": "-device virtio-vga,addr=9"},
        pci("virtio-gpu|09.0", HEADER), LATE, here={"vga": "-vga none"}),
    Row("virtio-balloon: page reporting offered", {"balloon": "+free-page-reporting=on"}, NOTHING,
        LIVES),
    Row("virtio-balloon: page reporting in use, not offered", {},
        feature("virtio-balloon|08.0", "REPORTING"), LATE,
        back={"balloon": "+free-page-reporting=on"}),
    Row("virtio-rng: vectors=3", {"rng": "+vectors=3"}, pci("virtio-rng|07.0", MSIX), LATE),
    Row("virtio-input: a mouse for a tablet", {"tablet": "-device virtio-mouse-pci,addr=c"},
        pci("virtio-input|0c.0", HEADER), LATE),
]

_PLATFORM = [
    Row("root port: no hotplug", {"port": "+hotplug=off"}, pci("pcie-root-port|02.0", "Express"),
        LATE),
    Row("root port: another slot number", {"port": "-device pcie-root-port,id=rp,addr=2,chassis=1,slot=7"},
        pci("pcie-root-port|02.0", "Express"), LATE),
    Row("root port: reserves I/O", {"port": "+io-reserve=4k"}, pci("pcie-root-port|02.0", HEADER), LATE),
    Row("root port: another speed", {"port": "+x-speed=8"}, pci("pcie-root-port|02.0", "Express"),
        LATE),
    Row("root port: another length of the AER log", {"port": "+aer_log_max=4"},
        error("section-schema device", "pcie-root-port|02.0", "log_max"), LATE),
    Row("xHCI: other numbers of ports", {"xhci": "+p2=8,p3=8"},
        error("section-schema", "xhci", "ports"), LATE, gate=True),
    Row("xHCI: no MSI-X", {"xhci": "+msix=off"}, pci("xhci", HEADER), LATE),
    Row("VGA: more memory", {"vga": "+vgamem_mb=32"}, error("ram-block-size", "vga", "size|0x|MiB|\\d{7}"),
        EARLY),
    Row("VGA: a cirrus in its place", {"vga": "-device cirrus-vga,addr=d"},
        error("section-missing", "vga", GONE), EARLY),
    Row("VGA: a bochs-display in its place", {"vga": "-device bochs-display,addr=d"},
        error("section-missing", "vga", GONE), EARLY),
    Row("pc: less cirrus memory", {"cirrus": "+vgamem_mb=8"},
        error("ram-block-size", "vga", "size|0x|MiB|\\d{7}"), EARLY, base="pc"),
    Row("pc: ACPI's PCI hotplug off", {
        "acpi": "-global PIIX4_PM.acpi-pci-hotplug-with-bridge-support=off"},
        warning("section-schema", "piix4_pm", "bytes|part"), LATE, base="pc"),
    Row("PIC off, for on", {"machine": "+pic=off"}, error("section-missing", "i8259", GONE), LATE),
    Row("PIC on, for off", {"machine": "-machine q35,pic=on"},
        error("device", "i8259", "pic=off"), HARM,
        back={"machine": "+pic=off"}, gate=True),
    Row("PIC on, for off, firmware only", {"machine": "-machine q35,pic=on"},
        warning("section-extra", "i8259", "i8259"), MOVED,
        back={"machine": "+pic=off"}, os=False),
    Row("HPET off", {"machine": "+hpet=off"}, error("section-missing", "hpet", GONE), LATE),
    Row("SMBus off", {"machine": "+smbus=off"}, error("section-missing", "smbus|ich9", GONE), LATE),
    Row("i8042 off", {"machine": "+i8042=off"}, error("section-missing", "kbd|ps2", GONE), LATE),
    Row("SMM off", {"machine": "+smm=off"}, NOTHING, LIVES),
    Row("ACPI S3 off", {"acpi": "-global ICH9-LPC.disable_s3=1"}, NOTHING, LIVES),
    Row("an older machine type", {"machine": "-machine pc-q35-9.2"},
        error("machine-type", "machine", "q35-9.2"), EARLY),
    Row("another serial of the machine", {"smbios": "-smbios type=1,serial=other"}, NOTHING, LIVES,
        here={"smbios": "-smbios type=1,serial=one"}),
    Row("another UUID", {"uuid": "-uuid 20000000-0000-4000-8000-000000000000"},
        warning("uuid", "UUID|uuid", "2000"), LIVES,
        here={"uuid": "-uuid 10000000-0000-4000-8000-000000000000"}),
    Row("an intel-iommu is added", {"iommu": "-device intel-iommu"},
        warning("section-extra", "iommu", "destination"), LIVES),
    Row("a CD-ROM drive is added", {"cd": "-device ide-cd,bus=ide.0"}, NOTHING, LIVES),
    Row("the same", {}, NOTHING, LIVES, gate=True),
    Row("pc: the same", {}, NOTHING, LIVES, base="pc"),
]

# Those with the same source stand together, so that it is started once.
ROWS = sorted((*_CPU, *_NETWORK, *_DISKS, *_MEMORY, *_VIRTIO_ROWS, *_PLATFORM),
              key=lambda row: (row.base != "q35", row.base, not row.os, bool(row.here or row.back),
                               str(row.here), str(row.back)))
