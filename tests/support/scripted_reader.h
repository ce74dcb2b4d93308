// A DirectReader that reads when the test says so, and as badly as it says: the order in which a
// store asks for pieces, and what it does about faults, become plain to see.
//
// Threads: Submit, Collect and Wake as a store calls them; everything else from the test's thread.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <vector>

#include "engine/base/direct_reader.h"

namespace sluice {

enum class PieceFate { kGood, kError, kShort, kWrongBytes };

class ScriptedReader final : public DirectReader {
 public:
  // `held`: pieces land by Land alone; otherwise at once.
  ScriptedReader(const File& file, bool held) : file_(file), held_(held) {}

  // What becomes of a piece, and how often it has been asked for before.
  void set_fate(std::function<PieceFate(const PieceRead&, int before)> fate) {
    fate_ = std::move(fate);
  }

  void Submit(const PieceRead& piece) override {
    const std::lock_guard lock(mutex_);
    asked_.push_back(piece);
    ++in_flight_;
    if (held_) {
      waiting_.push_back(asked_.size() - 1);
    } else {
      landed_.push_back(asked_.size() - 1);
    }
    changed_.notify_all();
  }

  void Collect(bool wait, std::vector<LandedPiece>* landed) override {
    std::unique_lock lock(mutex_);
    if (wait) {
      idle_ = true;
      changed_.notify_all();
      changed_.wait(lock, [this] { return woken_ || !landed_.empty(); });
      woken_ = idle_ = false;
    }
    for (const size_t number : landed_) {
      landed->push_back({asked_[number].token, Read(number)});
      --in_flight_;
    }
    landed_.clear();
  }

  void Wake() override {
    const std::lock_guard lock(mutex_);
    woken_ = true;
    changed_.notify_all();
  }

  int in_flight() const override { return in_flight_; }
  std::string_view method() const override { return "scripted"; }
  size_t direct_align() const override { return 0; }

  // Offsets of all pieces asked for so far, once there are `count` and the store sleeps; fewer when
  // it sleeps 10 s without them.
  std::vector<uint64_t> Asked(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(10), [&] {
      return asked_.size() >= count && idle_ && !woken_ && landed_.empty();
    });
    std::vector<uint64_t> offsets;
    for (const PieceRead& piece : asked_) offsets.push_back(piece.offset_bytes);
    return offsets;
  }
  // The held pieces that were asked for `nth`, counted from 0 among those held now.
  void Land(size_t nth = 0) {
    const std::lock_guard lock(mutex_);
    landed_.push_back(waiting_.at(nth));
    waiting_.erase(waiting_.begin() + static_cast<ptrdiff_t>(nth));
    changed_.notify_all();
  }
  // All of them, and from now on at once.
  void LandAll() {
    const std::lock_guard lock(mutex_);
    held_ = false;
    landed_.insert(landed_.end(), waiting_.begin(), waiting_.end());
    waiting_.clear();
    changed_.notify_all();
  }

 private:
  int64_t Read(size_t number) {
    const PieceRead& piece = asked_[number];
    int before = 0;
    for (size_t i = 0; i < number; ++i) before += asked_[i].offset_bytes == piece.offset_bytes;
    const PieceFate fate = fate_ ? fate_(piece, before) : PieceFate::kGood;
    if (fate == PieceFate::kError) return -EIO;
    uint64_t at = piece.offset_bytes;
    for (int i = 0; i < piece.part_count; ++i) {
      const iovec& part = piece.parts[static_cast<size_t>(i)];
      const std::span to(static_cast<std::byte*>(part.iov_base), part.iov_len);
      if (!file_.ReadAt(at, to)) return 0;
      if (fate == PieceFate::kWrongBytes) to[to.size() / 2] ^= std::byte{1};
      at += part.iov_len;
    }
    const auto bytes = static_cast<int64_t>(piece.bytes());
    return fate == PieceFate::kShort ? bytes / 2 : bytes;
  }

  const File& file_;
  std::function<PieceFate(const PieceRead&, int)> fate_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_;                     // GUARDED_BY(mutex_)
  bool woken_ = false;            // GUARDED_BY(mutex_)
  bool idle_ = false;             // GUARDED_BY(mutex_): the store sleeps in Collect
  std::vector<PieceRead> asked_;  // GUARDED_BY(mutex_)
  std::vector<size_t> waiting_;   // GUARDED_BY(mutex_), numbers in asked_
  std::vector<size_t> landed_;    // GUARDED_BY(mutex_), numbers in asked_
  int in_flight_ = 0;
};

}  // namespace sluice
