// Files of a model folder.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace agentserve::model {

// The whole file, if it is at most `most` bytes.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t most);

// A file mapped read-only. Move-only; unmapped when destroyed. Truncating the file while it is mapped raises SIGBUS on
// access, as with any mapped file.
class MappedFile {
 public:
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  MappedFile() = default;
  ~MappedFile();
  MappedFile(MappedFile&& o) noexcept;
  MappedFile& operator=(MappedFile&& o) noexcept;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  // Reads [offset, offset + size) into the page cache and this process's page tables.
  void Populate(size_t offset, size_t size) const;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace agentserve::model
