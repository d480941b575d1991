# SPDX-License-Identifier: GPL-2.0-or-later
"""Every device that QEMU knows: how a machine gets one, or why it gets none.

A device of the PCI bus that takes no options needs no line here. For a new one of
another kind the tests ask for a line.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

MACHINES = ("q35", "pc")
PER_MACHINE = 18        # there are 32 places on the bus, and not all are free
BOTH = frozenset(MACHINES)
Q35, PC = frozenset(["q35"]), frozenset(["pc"])


class Group(NamedTuple):
    """Devices that stand in one machine, after what they need."""

    name: str
    devices: Sequence[str]      # a name, and maybe its options
    needs: str = ""
    machine: str = ""           # more options of -machine
    on: frozenset[str] = BOTH


def _disk(node: str) -> str:
    return f"-blockdev null-co,node-name={node},size=1048576,read-zeroes=on"


def _disks(*nodes: str) -> str:
    return " ".join(map(_disk, nodes))


_AUDIO = "-audiodev none,id=audio"

GROUPS = (
    Group("disks", ["virtio-blk-pci,drive=d0", "virtio-blk-pci-transitional,drive=d1",
                    "virtio-blk-pci-non-transitional,drive=d2", "scsi-hd,bus=s0.0,drive=d3",
                    "scsi-cd,bus=s0.0,drive=d4", "ide-hd,bus=ahci.0,drive=d5",
                    "ide-cd,bus=ahci.1,drive=d6", "ide-cf,bus=ahci.2,drive=d7",
                    "sd-card,drive=d8", "scsi-hd,bus=s1.0,drive=d9", "scsi-hd,bus=s2.0,drive=d10",
                    "scsi-hd,bus=s3.0,drive=d11", "scsi-hd,bus=s4.0,drive=d12"],
          needs=_disks(*(f"d{n}" for n in range(13))) + " -device virtio-scsi-pci,id=s0"
          " -device ahci,id=ahci -device sdhci-pci -device lsi53c895a,id=s1 -device megasas,id=s2"
          " -device mptsas1068,id=s3 -device pvscsi,id=s4"),
    Group("floppy", ["isa-fdc,id=fdc", "floppy,bus=fdc.0,drive=d0"], needs=_disk("d0"), on=Q35),
    Group("floppy", ["floppy,drive=d0"], needs=_disk("d0"), on=PC),
    Group("isa-ide", ["isa-ide", "ne2k_isa", "isa-debug-exit", "pc-testdev", "isa-applesmc",
                      "hyperv-testdev", "pvpanic", "ib700", "isa-serial", "isa-parallel,chardev=c0",
                      "isa-debugcon,iobase=0xe9,chardev=c1", "adlib,audiodev=audio",
                      "cs4231a,audiodev=audio", "gus,audiodev=audio", "sb16,audiodev=audio,irq=7"],
          needs=f"-chardev null,id=c0 -chardev null,id=c1 {_AUDIO}"),
    # One VGA of old is enough for a machine; the firmware of a q35 does not like them.
    Group("isa-vga", ["isa-vga"], on=PC),
    Group("isa-cirrus-vga", ["isa-cirrus-vga"], on=PC),
    Group("vmware-svga", ["vmware-svga"]),
    Group("a balloon of both kinds", ["virtio-balloon-pci-transitional"]),
    Group("a new balloon", ["virtio-balloon-pci-non-transitional"]),
    Group("without a PS/2 controller of its own", ["i8042"], machine=",i8042=off"),
    Group("usb", ["usb-hub", "usb-bot", "usb-storage,drive=d0", "usb-ccid", "usb-kbd", "usb-mouse",
                  "usb-tablet"],
          needs=f"-device qemu-xhci,p2=15,p3=15 {_disk('d0')}"),
    Group("usb of ich9", ["ich9-usb-ehci1,id=usb,addr=7.7,multifunction=on",
                          "ich9-usb-uhci1,masterbus=usb.0,firstport=0,addr=7.0,multifunction=on",
                          "ich9-usb-uhci2,masterbus=usb.0,firstport=2,addr=7.1,multifunction=on",
                          "ich9-usb-uhci3,masterbus=usb.0,firstport=4,addr=7.2,multifunction=on",
                          "usb-tablet,bus=usb.0", "usb-storage,bus=usb.0,drive=d0",
                          "ich9-usb-ehci2", "ich9-usb-uhci4", "ich9-usb-uhci5", "ich9-usb-uhci6"],
          needs=_disk("d0")),
    Group("serial", ["virtconsole,chardev=c0", "virtserialport,chardev=c1", "virtserialport,chardev=c2",
                     "pci-serial,chardev=c3"],
          needs="-device virtio-serial-pci " + " ".join(f"-chardev null,id=c{n}" for n in range(4))),
    Group("sound", ["AC97,audiodev=audio", "ES1370,audiodev=audio",
                    "hda-duplex,audiodev=audio", "hda-micro,audiodev=audio", "hda-output,audiodev=audio"],
          needs=f"{_AUDIO} -device intel-hda"),
    Group("memory", ["pc-dimm,memdev=m0", "virtio-mem-pci,memdev=m1,requested-size=64M",
                     "acpi-erst,memdev=m3", "ivshmem-plain,memdev=m4,master=on", "nvdimm,memdev=m5"],
          machine=",nvdimm=on",
          needs="-m 64,slots=4,maxmem=1G -object memory-backend-ram,id=m0,size=128M"
                " -object memory-backend-ram,id=m1,size=128M"
                " -object memory-backend-ram,id=m3,size=64K"
                " -object memory-backend-ram,id=m4,size=1M,share=on"
                " -object memory-backend-ram,id=m5,size=128M"),
    Group("bridges", ["pci-bridge,chassis_nr=1", "pci-bridge-seat,chassis_nr=2", "i82801b11-bridge"]),
    Group("bridges of PCI", ["pxb,bus_nr=0x80,id=pxb", "e1000,bus=pxb,addr=1,romfile="], on=PC),
    Group("bridges of PCI Express",
          ["pcie-pci-bridge,id=conventional", "e1000,bus=conventional,addr=1,romfile=",
           "pxb-pcie,bus_nr=0x80,id=pxb", "pcie-root-port,id=r0,bus=pxb,chassis=1,slot=1",
           "pcie-root-port,id=r1,chassis=2,slot=2", "x3130-upstream,id=up,bus=r1",
           "xio3130-downstream,id=down,bus=up,chassis=3,slot=3", "virtio-rng-pci,bus=down",
           "ioh3420,id=r2,chassis=4,slot=4", "virtio-net-pci,bus=r2,romfile=", "nec-usb-xhci,bus=r0"],
          on=Q35),
    Group("CAN", ["kvaser_pci,canbus=can", "mioe3680_pci,canbus0=can,canbus1=can",
                  "pcm3680_pci,canbus0=can,canbus1=can", "ctucan_pci,canbus0=can,canbus1=can",
                  "tpci200", "ipoctal232"],
          needs="-object can-bus,id=can"),
    # There can be one BMC.
    *(Group(device, [f"{device},bmc=bmc"], needs="-device ipmi-bmc-sim,id=bmc")
      for device in ("isa-ipmi-kcs", "isa-ipmi-bt", "pci-ipmi-kcs", "pci-ipmi-bt", "smbus-ipmi")),
    Group("misc", ["vmgenid", "vmcoreinfo", "ramfb", "i2c-ddc", "i2c-echo", "vmbus-bridge", "nvme-subsys", "uefi-vars-x64",
                   "mc146818rtc", "ipmi-bmc-extern,chardev=c0"],
          needs="-chardev null,id=c0"),
    Group("IOMMUs", ["intel-iommu"], on=Q35),
    Group("another IOMMU", ["virtio-iommu-pci"], on=Q35),
)

_HOST = "it takes a device of the host's"
_PROXY = "it is a part of the one with -pci, which stands for it"
_UNMIGRATABLE = "it cannot be migrated"     # and the handshake says so
_XEN = "it takes a guest of Xen's"

EXCLUDED = {
    **dict.fromkeys(("scsi-block", "scsi-generic", "u2f-passthru", "vfio-pci", "vfio-pci-nohotplug",
                     "vfio-pci-igd-lpc-bridge", "virtio-input-host-pci",
                     "virtio-input-host-device"), _HOST),
    **dict.fromkeys(("virtio-blk-device", "virtio-scsi-device", "virtio-net-device",
                     "virtio-keyboard-device", "virtio-mouse-device", "virtio-multitouch-device",
                     "virtio-serial-device", "virtio-tablet-device", "virtio-gpu-device",
                     "virtio-sound-device", "virtio-balloon-device", "virtio-crypto-device",
                     "virtio-iommu-device", "virtio-mem", "virtio-pmem", "virtio-rng-device"), _PROXY),
    **dict.fromkeys(("xen-net-device", "xen-backend", "xen-platform", "xen-cdrom", "xen-console",
                     "xen-disk"), _XEN),
    **dict.fromkeys(("cxl-type3", "cxl-switch-mailbox-cci", "pxb-cxl", "cxl-upstream",
                     "cxl-downstream", "cxl-rp"), "it takes a CXL host bridge"),
    "ufs": _UNMIGRATABLE, "ufs-lu": _UNMIGRATABLE, "rocker": _UNMIGRATABLE,
    "amd-iommu": _UNMIGRATABLE, "AMDVI-PCI": "it is a part of amd-iommu",
    "nvme": _UNMIGRATABLE, "nvme-ns": _UNMIGRATABLE,
    **dict.fromkeys(("usb-mtp", "usb-serial", "usb-braille", "usb-audio", "usb-wacom-tablet", "usb-net",
                     "usb-uas"), _UNMIGRATABLE),
    "ivshmem-doorbell": "it takes a server", "hv-syndbg": "it takes KVM",
    "guest-loader": "it is no device, and has no state",
    "loader": "it is no device, and has no state",
    "sd-card-spi": "there is no SPI bus on a PC",
    "uefi-vars-sysbus": "it is for other machines",
    "virtio-pmem-pci": "it takes a shared file",
    "vmclock": "it takes a guest that was told of it by the host",
    "ipmi-bmc-sim": "it stands in groups, as the BMC of others",
    "vmmouse": "every PC has one",
    "virtio-sound-pci": _UNMIGRATABLE, "virtio-crypto-pci": _UNMIGRATABLE,
}

# All that cannot be migrated and can be had here, at once.
UNMIGRATABLE = ("ufs", "rocker", "nvme,serial=one", "amd-iommu", "usb-mtp,rootdir=/",
                "virtio-sound-pci,audiodev=audio", "virtio-crypto-pci,cryptodev=crypto",
                "usb-serial,chardev=c0", "usb-braille,chardev=c1", "usb-audio,audiodev=audio",
                "usb-wacom-tablet", "usb-net", "usb-uas")
UNMIGRATABLE_NEEDS = (f"{_AUDIO} -object cryptodev-backend-builtin,id=crypto -chardev null,id=c0"
                      " -chardev null,id=c1 -device qemu-xhci,p2=15,p3=15")

# Their firmware would try to boot from the network.
_NIC = re.compile(r"e1000|i82[58]|igb|ne2k|pcnet|rtl|tulip|vmxnet|virtio-net")

_NAME = re.compile(r'^name "(\S+)"(?:, bus ([^,\n]+))?', re.MULTILINE)


def known(qemu: Path) -> Mapping[str, str]:
    """The devices of that QEMU without CPUs, and their buses, "" if there is none."""
    done = subprocess.run([qemu, "-device", "help"], stdin=subprocess.DEVNULL, check=True,
                          capture_output=True, text=True)
    return {name: bus for name, bus in _NAME.findall(done.stdout) if not name.endswith("-cpu")}


def cpus(qemu: Path) -> Sequence[str]:
    done = subprocess.run([qemu, "-device", "help"], stdin=subprocess.DEVNULL, check=True,
                          capture_output=True, text=True)
    return [name for name, _ in _NAME.findall(done.stdout) if name.endswith("-cpu")]


def name_of(device: str) -> str:
    return device.split(",")[0]


_IN_GROUPS = {name_of(device) for group in GROUPS for device in group.devices}


def plain(devices: Mapping[str, str]) -> Sequence[str]:
    """Those of PCI that need nothing."""
    return [name for name, bus in devices.items() if bus == "PCI" and name not in EXCLUDED
            and name not in _IN_GROUPS]


def groups(qemu: Path) -> Sequence[Group]:
    devices = known(qemu)
    names = [f"{name},romfile=" if _NIC.match(name) else name for name in plain(devices)]
    result = [Group(f"PCI {i // PER_MACHINE + 1}", names[i:i + PER_MACHINE])
              for i in range(0, len(names), PER_MACHINE)]
    for group in GROUPS:
        there = [one for one in group.devices if name_of(one) in devices]
        if there:
            result.append(group._replace(devices=there))
    return result


def without_line(qemu: Path) -> Sequence[str]:
    devices = known(qemu)
    return [name for name in devices if name not in EXCLUDED and name not in _IN_GROUPS
            and name not in plain(devices)]
