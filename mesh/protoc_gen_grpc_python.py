"""A protoc plugin for gRPC's Python stubs, which grpcio-tools offers only inside its own protoc.

It runs in .venv-gen and must import nothing of the project.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

from google.protobuf.compiler import plugin_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc


def generate(request: plugin_pb2.CodeGeneratorRequest) -> plugin_pb2.CodeGeneratorResponse:
    """The `_pb2_grpc.py` files of the requested files that define services."""
    response = plugin_pb2.CodeGeneratorResponse(
        supported_features=plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    )
    wanted = set(request.file_to_generate)
    files = [file.name for file in request.proto_file if file.name in wanted and file.service]
    if not files:
        return response
    with tempfile.TemporaryDirectory(prefix="ecp-gen-") as folder:
        image, out = Path(folder, "image.binpb"), Path(folder, "out")
        out.mkdir()
        image.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
        with contextlib.redirect_stdout(sys.stderr):
            code = protoc.main(["protoc", f"--descriptor_set_in={image}", f"--grpc_python_out={out}", *files])
        if code:
            response.error = f"grpc_tools.protoc failed with {code}"
            return response
        for path in sorted(out.rglob("*.py")):
            response.file.add(name=path.relative_to(out).as_posix(), content=path.read_text(encoding="utf-8"))
    return response


if __name__ == "__main__":
    asked = plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    sys.stdout.buffer.write(generate(asked).SerializeToString())
