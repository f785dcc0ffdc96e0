#!/usr/bin/env python3
"""Writes the fuzzers' starting points into corpus/: small sound files of every kind, of the standard library alone.
Usage: python3 tests/fuzz/make_corpus.py  (from the root of the project; the result is kept in the repository)"""
import collections, io, json, os, pickle, struct, sys, tarfile, types, zipfile

CORPUS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus")


def write(name, data):
    with open(os.path.join(CORPUS, name), "wb") as file:
        file.write(data)


def stand_in(module, name, base=object):
    """A class that pickles under torch's name."""
    made = type(name, (base,), {"__module__": module})
    parts = module.split(".")
    for i in range(len(parts)):
        sys.modules.setdefault(".".join(parts[: i + 1]), types.ModuleType(".".join(parts[: i + 1])))
    setattr(sys.modules[module], name, made)
    return made


def function(module, name):
    stand_in(module, "Unused")

    def made(*args):
        raise RuntimeError("never called")

    made.__module__, made.__name__, made.__qualname__ = module, name, name
    setattr(sys.modules[module], name, made)
    return made


class Rebuilt:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Storage:
    def __init__(self, kind, key, numel):
        self.id = ("storage", kind, key, "cpu", numel)


class TorchPickler(pickle._Pickler):
    def persistent_id(self, value):
        return value.id if isinstance(value, Storage) else None


def torch_pickle(value, protocol=2):
    out = io.BytesIO()
    TorchPickler(out, protocol).dump(value)
    return out.getvalue()


class Size:
    """Pickles like torch.Size."""

    def __init__(self, *sizes):
        self.sizes = sizes

    def __reduce__(self):
        return size_class, (self.sizes,)


plain = {"a": [1, -2, 300, 70000, 2**40, 2**80], "b": (None, True, False, 1.5, ()), "c": {"d": "text", "e": b"bytes"}, "f": [[], {}, ((1,),)]}
plain["self"] = plain
for protocol in range(1, 6):
    write(f"pickle.protocol{protocol}", pickle.dumps(plain if protocol > 2 else {k: v for k, v in plain.items() if k != "c"}, protocol))
write("pickle.set", pickle.dumps([{1, 2}, frozenset({3}), bytearray(b"xyz")], 4 if sys.version_info < (3, 8) else 5))
write("pickle.ordered", pickle.dumps(collections.OrderedDict(a=1, b=2), 2))

rebuild_v2, rebuild_v3 = function("torch._utils", "_rebuild_tensor_v2"), function("torch._utils", "_rebuild_tensor_v3")
parameter = function("torch._utils", "_rebuild_parameter")
kinds = {name: stand_in("torch", name) for name in ("FloatStorage", "BFloat16Storage", "ByteStorage")}
untyped, fp8 = stand_in("torch.storage", "UntypedStorage"), stand_in("torch", "float8_e4m3fn")
storages = [Storage(kinds["FloatStorage"], "0", 6), Storage(kinds["BFloat16Storage"], "1", 12), Storage(untyped, "2", 24)]
hooks = collections.OrderedDict()
state = {
    "whole": Rebuilt(rebuild_v2, storages[0], 0, (2, 3), (3, 1), False, hooks),
    "turned": Rebuilt(rebuild_v2, storages[1], 2, (5, 2), (1, 5), False, hooks),
    "parameter": Rebuilt(parameter, Rebuilt(rebuild_v2, storages[1], 0, (), (), False, hooks), True, hooks),
    "fp8": Rebuilt(rebuild_v3, storages[2], 0, (4, 6), (6, 1), False, hooks, fp8),
    "epoch": 7,
}
for protocol in (2, 4):
    write(f"torch_pickle.protocol{protocol}", torch_pickle(state, protocol))
zipped = io.BytesIO()
with zipfile.ZipFile(zipped, "w", zipfile.ZIP_STORED) as file:
    file.writestr("archive/data.pkl", torch_pickle(state))
    file.writestr("archive/byteorder", "little")
    for key in "012":
        file.writestr(f"archive/data/{key}", bytes(range(24)))
write("torch_file.zip", zipped.getvalue())
stream = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
stream += pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}, 2)
stream += torch_pickle({"w": state["whole"]}) + pickle.dumps(["0"], 2) + struct.pack("<q", 6) + bytes(24)
write("torch_file.stream", stream)

module = "torch.distributed.checkpoint.metadata"
Metadata, TensorStorageMetadata, TensorProperties, Chunk, Bytes, Index = (
    stand_in(module, name)
    for name in ("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "BytesStorageMetadata", "MetadataIndex")
)
Info = stand_in("torch.distributed.checkpoint.filesystem", "_StorageInfo")
size_class, bfloat16 = stand_in("torch", "Size"), stand_in("torch", "bfloat16")


def made(kind, **state):
    value = kind()
    value.__dict__.update(state)
    return value


class Properties:
    def __reduce__(self):
        return TensorProperties, (), (bfloat16, None, False, None, False)


def array(shape, chunks):
    return made(TensorStorageMetadata, properties=Properties(), size=Size(*shape), chunks=[made(Chunk, offsets=Size(*a), sizes=Size(*b)) for a, b in chunks])


def metadata(arrays, **last):
    places, offset = {}, 0
    for name, (shape, chunks) in arrays.items():
        for begin, sizes in chunks:
            places[made(Index, fqn=name, offset=Size(*begin), index=0)] = made(Info, relative_path="__0_0.distcp", offset=offset, length=100)
            offset += 100
    places[made(Index, fqn="step", index=None)] = made(Info, relative_path="__0_0.distcp", offset=offset, length=9, transform_descriptors=["stream.zstd/1"])
    described = {name: array(shape, chunks) for name, (shape, chunks) in arrays.items()} | {"step": made(Bytes)}
    return pickle.dumps(made(Metadata, state_dict_metadata=described, planner_data=None, storage_data=places, storage_meta=None, **last), 4)


write("metadata.rows", metadata({"model.w": ((5, 4), [((0, 0), (3, 4)), ((3, 0), (2, 4))]), "model.s": ((), [((), ())]), "none": ((0, 3), [])}))
write("metadata.grid", metadata({"w": ((2, 4, 6), [((i, j, 0), (1, 2, 6)) for i in (0, 1) for j in (0, 2)])}, all_local_plans=[made(Info, items=[1, 2])]))

header = {"__metadata__": {"format": "pt"}, "w": {"dtype": "BF16", "shape": [4, 3], "data_offsets": [0, 24]}, "s": {"dtype": "F32", "shape": [], "data_offsets": [24, 28]}}
text = json.dumps(header).encode()
write("safetensors.two", struct.pack("<Q", len(text)) + text + bytes(28))


def archive(form, members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue().rstrip(b"\0") + bytes(1536)


deep = "./model_weights/" + "long_name/" * 12 + "0.0"
write("tar.ustar", archive(tarfile.USTAR_FORMAT, {"./model_config.yaml": b"precision: bf16\n", "./model_weights/common.pt": b"x" * 700}))
write("tar.gnu", archive(tarfile.GNU_FORMAT, {deep: b"chunk", "./a": b""}))
write("tar.pax", archive(tarfile.PAX_FORMAT, {deep + "\u00e9": b"chunk", "./a": b"b"}))

described = {"zarr_format": 2, "shape": [3, 4], "chunks": [2, 3], "dtype": "<f4", "order": "C", "compressor": None, "filters": None, "fill_value": None}
write("zarr.f4", json.dumps(described).encode())
write("zarr.bfloat16", json.dumps(described | {"dtype": "bfloat16", "chunks": [2, 6], "dimension_separator": "."}).encode())
write("zarr.stacked", json.dumps(described | {"shape": [2, 2, 3], "chunks": [1, 2, 3], "dimension_separator": "/"}).encode())
write("zarr.scalar", json.dumps(described | {"shape": [], "chunks": [], "dtype": "<i8"}).encode())
