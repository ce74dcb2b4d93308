// The disk tier beside the disk: whole experts of a pack at random, through PackStore (checksums
// verified) and as plain direct reads of the same pieces at the same depth, in turns; what the
// fetch thread costs; how long a demand waits behind reads that nobody waits for.
//
//   bench_store PACK [--threads] [--buffered] [--small-pages] [--piece BYTES] [--depth N]
//               [--background N] [--seconds S] [--latency]
//
// Figures are medians over rounds; disks of virtual machines change their mind by the second, so
// only ratios within a round say much.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/direct_reader.h"
#include "engine/base/disk_speed.h"
#include "engine/experts/pack_store.h"

namespace sluice {
namespace {

constexpr int kSlots = 16;
constexpr int kOutstanding = 8;  // experts of a layer

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double ProcessCpu() {
  timespec t = {};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Settings {
  PackStoreOptions store;
  bool small_pages = false;
  double seconds = 0.5;  // of a round
};

class Bench {
 public:
  Bench(std::shared_ptr<const PackReader> pack, const Settings& settings)
      : pack_(std::move(pack)), settings_(settings), random_(12345) {
    for (int layer = 0; layer < pack_->layers(); ++layer) {
      for (int index = 0; index < pack_->experts_per_layer(); ++index) {
        const PackExpert* expert = pack_->FindExpert(layer, index);
        if (expert == nullptr) continue;
        experts_.push_back({layer, index});
        slot_bytes_ = std::max(slot_bytes_, expert->bytes(expert->sets.size()));
      }
    }
    constexpr size_t kHugePage = size_t{2} << 20;
    const size_t bytes = slot_bytes_ * kSlots;
    void* const memory = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    auto start = reinterpret_cast<uintptr_t>(memory);
    slots_ = reinterpret_cast<std::byte*>((start + kHugePage - 1) / kHugePage * kHugePage);
    madvise(slots_, bytes, settings_.small_pages ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
    std::memset(slots_, 1, bytes);
  }

  bool empty() const { return experts_.empty(); }
  size_t slot_bytes() const { return slot_bytes_; }

  ExpertRead RandomRead(uint64_t ticket, int urgency) {
    ExpertRead read;
    read.ticket = ticket;
    read.expert = experts_[random_() % experts_.size()];
    read.urgency = urgency;
    const PackExpert& expert = *pack_->FindExpert(read.expert.layer, read.expert.index);
    read.end_set = static_cast<int>(expert.sets.size());
    for (size_t set = 0; set < expert.sets.size(); ++set) {
      read.destination[set] = slots_ + slot_bytes_ * (ticket % kSlots) + expert.bytes(set);
    }
    return read;
  }

  // Bytes per second of whole experts, kOutstanding asked for at a time.
  double Store(PackStore* store) {
    std::vector<LandedRead> landed;
    const uint64_t before = store->stats().bytes;
    const double begin = Now();
    uint64_t next = 0;
    int outstanding = 0;
    while (true) {
      const bool more = Now() - begin < settings_.seconds;
      while (more && outstanding < kOutstanding) {
        store->Submit(RandomRead(next++, kUrgencyDemand));
        ++outstanding;
      }
      if (outstanding == 0) break;
      landed.clear();
      store->Collect(true, &landed);
      outstanding -= static_cast<int>(landed.size());
      for (const LandedRead& read : landed) {
        if (!read.ok) std::printf("%s\n", read.error.message.c_str());
      }
    }
    return static_cast<double>(store->stats().bytes - before) / (Now() - begin);
  }

  // The same reads in the same pieces, by the reader alone.
  double Plain(DirectReader* reader) {
    std::vector<LandedPiece> landed;
    const double begin = Now();
    uint64_t bytes = 0;
    uint64_t number = 0;
    size_t at = slot_bytes_;
    const PackExpert* expert = nullptr;
    while (true) {
      while (reader->in_flight() < settings_.store.depth) {
        if (at >= slot_bytes_) {
          if (Now() - begin >= settings_.seconds) break;
          const ExpertId id = experts_[random_() % experts_.size()];
          expert = pack_->FindExpert(id.layer, id.index);
          at = 0;
          ++number;
        }
        const size_t pieces =
            (slot_bytes_ + settings_.store.piece_bytes - 1) / settings_.store.piece_bytes;
        const size_t piece = (slot_bytes_ / pieces + 4095) / 4096 * 4096;
        PieceRead read;
        read.offset_bytes = expert->offset + at;
        const size_t length = std::min(piece, slot_bytes_ - at);
        read.parts[0] = {slots_ + slot_bytes_ * (number % kSlots) + at, length};
        read.part_count = 1;
        reader->Submit(read);
        at += length;
      }
      if (reader->in_flight() == 0) break;
      landed.clear();
      reader->Collect(true, &landed);
      for (const LandedPiece& piece : landed) {
        if (piece.result < 0) std::printf("error %ld\n", static_cast<long>(-piece.result));
        bytes += static_cast<uint64_t>(std::max<int64_t>(piece.result, 0));
      }
    }
    return static_cast<double>(bytes) / (Now() - begin);
  }

  // Seconds from Submit of one demand to its landing, while `background` predicted reads are kept
  // queued; the bandwidth of these goes to `rate`.
  std::vector<double> DemandLatency(PackStore* store, int background, double* rate) {
    std::vector<LandedRead> landed;
    std::vector<double> waits;
    constexpr uint64_t kDemand = kSlots - 1;
    const uint64_t before = store->stats().bytes;
    const double begin = Now();
    double asked = 0;
    double next_demand = begin + 0.01;
    uint64_t ticket = 0;
    int outstanding = 0;
    while (Now() - begin < settings_.seconds || outstanding > 0) {
      const bool more = Now() - begin < settings_.seconds;
      for (; more && outstanding - (asked > 0) < background; ++outstanding) {
        if (ticket % kSlots == kDemand) ++ticket;
        store->Submit(RandomRead(ticket++, kUrgencyPredicted));
      }
      if (more && asked == 0 && (background == 0 || Now() > next_demand)) {
        ExpertRead read = RandomRead(kDemand, kUrgencyDemand);
        read.ticket = ~uint64_t{0};
        asked = Now();
        store->Submit(read);
        ++outstanding;
      }
      landed.clear();
      if (outstanding > 0) store->Collect(true, &landed);
      for (const LandedRead& read : landed) {
        --outstanding;
        if (read.ticket != ~uint64_t{0}) continue;
        waits.push_back(Now() - asked);
        asked = 0;
        next_demand = Now() + 0.005 + 0.00001 * static_cast<double>(random_() % 500);
      }
    }
    *rate = static_cast<double>(store->stats().bytes - before) / (Now() - begin);
    return waits;
  }

 private:
  std::shared_ptr<const PackReader> pack_;
  Settings settings_;
  std::mt19937_64 random_;
  std::vector<ExpertId> experts_;
  uint64_t slot_bytes_ = 0;
  std::byte* slots_ = nullptr;
};

std::unique_ptr<PackStore> OpenStore(const std::shared_ptr<const PackReader>& pack,
                                     const PackStoreOptions& options) {
  auto store = PackStore::Open(pack, options);
  if (!store) {
    std::fprintf(stderr, "%s\n", store.error().message.c_str());
    std::exit(1);
  }
  return std::move(*store);
}

void Throughput(Bench* bench, const std::shared_ptr<const PackReader>& pack,
                const Settings& settings) {
  DirectReaderOptions reader_options;
  reader_options.depth = settings.store.depth;
  reader_options.io_uring = settings.store.io_uring;
  reader_options.direct = settings.store.direct;
  const auto reader = DirectReader::Open(pack->file(), reader_options);
  const auto store = OpenStore(pack, settings.store);
  std::printf("%s, %zu bytes per expert, depth %d\n", store->description().c_str(),
              bench->slot_bytes(), settings.store.depth);
  std::vector<double> stored, plain, ratio, cpu, fetch_cpu, plain_cpu;
  for (int round = 0; round < 7; ++round) {
    const ExpertStoreStats before = store->stats();
    double begin = ProcessCpu();
    stored.push_back(bench->Store(store.get()) / 1e9);
    const ExpertStoreStats after = store->stats();
    const double gigabytes = static_cast<double>(after.bytes - before.bytes) / 1e9;
    cpu.push_back((ProcessCpu() - begin) / gigabytes);
    fetch_cpu.push_back((after.cpu_seconds - before.cpu_seconds) / gigabytes);
    begin = ProcessCpu();
    const double wall = Now();
    plain.push_back(bench->Plain(reader->get()) / 1e9);
    plain_cpu.push_back((ProcessCpu() - begin) / (plain.back() * (Now() - wall)));
    ratio.push_back(stored.back() / plain.back());
  }
  std::printf("store   %.2f GB/s, fetch thread %.3f s/GB, process %.3f s/GB\n", Median(stored),
              Median(fetch_cpu), Median(cpu));
  std::printf("plain   %.2f GB/s, process %.3f s/GB\n", Median(plain), Median(plain_cpu));
  std::printf("ratio   %.3f (median of rounds)\n", Median(ratio));
  DiskSpeedOptions speed_options;
  speed_options.piece_bytes = settings.store.piece_bytes;
  speed_options.reader = reader_options;
  const double begin = Now();
  const Result<DiskSpeed> speed = MeasureDisk(pack->path(), speed_options);
  if (!speed) return;
  std::printf("MeasureDisk %.2f GB/s, 4 KiB in %.0f us, in %.2f s\n", speed->bytes_per_second / 1e9,
              speed->small_read_seconds * 1e6, Now() - begin);
}

void Latency(Bench* bench, const std::shared_ptr<const PackReader>& pack, Settings settings) {
  for (const int depth : {0, 1, 2, 3, settings.store.depth}) {
    settings.store.background_depth = std::max(depth, 1);
    const auto store = OpenStore(pack, settings.store);
    double rate = 0;
    std::vector<double> waits = bench->DemandLatency(store.get(), depth == 0 ? 0 : 6, &rate);
    if (waits.empty()) continue;
    std::sort(waits.begin(), waits.end());
    std::printf(
        "a demand over %d predicted pieces in flight: %5.2f ms median, %5.2f ms 9 in 10 "
        "(%zu), %.2f GB/s in all\n",
        depth, waits[waits.size() / 2] * 1e3, waits[waits.size() * 9 / 10] * 1e3, waits.size(),
        rate / 1e9);
  }
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: bench_store PACK [options]; see the source\n");
    return 2;
  }
  Settings settings;
  bool latency = false;
  for (int i = 2; i < argc; ++i) {
    const std::string_view option = argv[i];
    const bool valued = i + 1 < argc;
    if (option == "--threads") settings.store.io_uring = false;
    if (option == "--buffered") settings.store.direct = false;
    if (option == "--small-pages") settings.small_pages = true;
    if (option == "--latency") latency = true;
    if (option == "--piece" && valued)
      settings.store.piece_bytes = std::strtoul(argv[++i], nullptr, 10);
    if (option == "--depth" && valued) settings.store.depth = std::atoi(argv[++i]);
    if (option == "--background" && valued) settings.store.background_depth = std::atoi(argv[++i]);
    if (option == "--seconds" && valued) settings.seconds = std::atof(argv[++i]);
  }
  Result<PackReader> opened = PackReader::Open(argv[1]);
  if (!opened) {
    std::fprintf(stderr, "%s\n", opened.error().message.c_str());
    return 1;
  }
  const auto pack = std::make_shared<const PackReader>(std::move(*opened));
  Bench bench(pack, settings);
  if (bench.empty()) {
    std::fprintf(stderr, "%s has no experts\n", argv[1]);
    return 1;
  }
  if (latency) {
    Latency(&bench, pack, settings);
  } else {
    Throughput(&bench, pack, settings);
  }
  return 0;
}

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) { return sluice::Main(argc, argv); }
