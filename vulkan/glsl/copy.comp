#version 450 core

// A plain copy, 16 bytes an access: the roof that the embedding's useful bytes are measured against (docs/kernel.md).
// Grid: x only, of any size; what it does not reach is strided over.

layout(local_size_x_id = 0) in;
layout(std430, set = 0, binding = 0) writeonly restrict buffer Target { uvec4 target[]; };
layout(std430, set = 0, binding = 1) readonly restrict buffer Source { uvec4 source[]; };

void main() {
  const uint reach = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
  for (uint i = gl_GlobalInvocationID.x; i < source.length(); i += reach) {
    target[i] = source[i];
  }
}
