#include "parallel/mesh.h"

namespace ptq::parallel {

Mesh Mesh::make(Communicator& world, MeshShape shape) {
  require(world.size() == shape.data * shape.pipeline * shape.tensor, "the mesh does not have as many places as there are ranks");
  Mesh mesh;
  mesh.shape_ = shape;
  mesh.world_ = &world;
  mesh.tensor_rank_ = world.rank() % shape.tensor;
  mesh.pipeline_rank_ = world.rank() / shape.tensor % shape.pipeline;
  mesh.data_rank_ = world.rank() / (shape.tensor * shape.pipeline);
  const int d = mesh.data_rank_, p = mesh.pipeline_rank_, t = mesh.tensor_rank_;
  mesh.tensor_ = world.split(d * shape.pipeline + p, t);
  mesh.data_ = world.split(p * shape.tensor + t, d);
  mesh.pipeline_ = world.split(d * shape.tensor + t, p);
  mesh.stage_ = world.split(p, d * shape.tensor + t);
  return mesh;
}

}  // namespace ptq::parallel
