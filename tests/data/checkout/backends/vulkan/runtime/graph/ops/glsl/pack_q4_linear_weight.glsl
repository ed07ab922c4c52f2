#version 450 core
// The plainest prepack: one invocation makes the two blocks of 8 columns of 8 rows, bit by bit.
layout(local_size_x_id = 0, local_size_y_id = 1, local_size_z_id = 2) in;
layout(std430, set = 0, binding = 0) writeonly buffer Packed { ivec4 t_packed[]; };
layout(std430, set = 0, binding = 1) readonly buffer Weight { uint t_weight[]; };
layout(push_constant) uniform Push { ivec4 packed_sizes; ivec2 orig_sizes; };

void main() {
  const int k8 = int(gl_GlobalInvocationID.x), n8 = int(gl_GlobalInvocationID.y);
  if (k8 >= orig_sizes.x >> 3 || n8 >= (orig_sizes.y + 7) >> 3) {
    return;
  }
  for (int half_of = 0; half_of < 2; ++half_of) {
    ivec4 block = ivec4(0);
    for (int n = 0; n < 8; ++n) {
      const int row = n8 * 8 + n;
      const uint word = row < orig_sizes.y ? t_weight[row * (orig_sizes.x >> 3) + k8] : 0x88888888u;
      for (int k = 0; k < 4; ++k) {
        const uint code = (word >> (16 * half_of + 4 * k)) & 15u;
        block[n & 3] |= int(code << ((n & 4) + 8 * k));
      }
    }
    t_packed[n8 * (orig_sizes.x >> 2) + 2 * k8 + half_of] = block;
  }
}
