// Runs a fuzz target where there is no libFuzzer: first over a corpus, then over what a seeded
// generator makes of it. Knows nothing of coverage; it keeps the decoders from getting worse, and
// clang's -fsanitize=fuzzer, which brings its own main(), looks for what is new.
//
//   fuzz_wire [--seconds N] [--runs N] [--seed N] FILE-OR-FOLDER...
//
// The input that ends the process is left in ./fuzz-failure.
#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

namespace fs = std::filesystem;

constexpr size_t kLongestInput = 64 << 10;

std::string current;  // what is being tried

// Only calls what a signal handler may.
void keepInput(int signal_number) {
  int fd = open("fuzz-failure", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd >= 0 && write(fd, current.data(), current.size()) >= 0) close(fd);
  std::signal(signal_number, SIG_DFL);
  std::raise(signal_number);
}

void tryInput(std::string input) {
  current = std::move(input);
  // Exactly as long as the input, so that a sanitizer sees a read beyond it.
  std::vector<uint8_t> exact(current.begin(), current.end());
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

class Mutator {
 public:
  Mutator(std::vector<std::string> corpus, uint64_t seed)
      : corpus_(std::move(corpus)), random_(seed) {}

  std::string next() {
    std::string input = corpus_[below(corpus_.size())];
    for (size_t n = 1 + below(6); n > 0; --n) change(input);
    if (input.size() > kLongestInput) input.resize(kLongestInput);
    return input;
  }

 private:
  size_t below(size_t limit) { return limit == 0 ? 0 : random_() % limit; }

  void change(std::string& input) {
    size_t at = below(input.size() + 1);
    size_t n = std::min(below(16) + 1, input.size() - at);
    constexpr uint64_t kTelling[] = {0,          1,          0x7f,
                                     0x80,       0xff,       0xffff,
                                     0x7fffffff, 0xffffffff, 0x100000000,
                                     1u << 30,   UINT64_MAX, uint64_t{1} << 63};
    switch (below(8)) {
      case 0:  // a bit
        if (n > 0) input[at] = static_cast<char>(input[at] ^ (1 << below(8)));
        break;
      case 1:  // a byte
        if (n > 0) input[at] = static_cast<char>(random_());
        break;
      case 2: {  // a number that is at some limit
        uint64_t value = kTelling[below(std::size(kTelling))];
        size_t width = size_t{1} << below(4);
        if (at + width <= input.size()) std::memcpy(input.data() + at, &value, width);
        break;
      }
      case 3: {  // a number, by a little
        if (n > 0) input[at] = static_cast<char>(input[at] + static_cast<int>(below(9)) - 4);
        break;
      }
      case 4:
        input.erase(at, n);
        break;
      case 5:
        for (size_t i = 0; i < n; ++i) input.insert(at, 1, static_cast<char>(random_()));
        break;
      case 6: {  // a part of another
        const std::string& other = corpus_[below(corpus_.size())];
        input.insert(at, other.substr(below(other.size() + 1), below(200)));
        break;
      }
      case 7:
        input.resize(at);
        break;
    }
  }

  std::vector<std::string> corpus_;
  std::mt19937_64 random_;
};

void addFile(std::vector<std::string>& corpus, const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 0;
  uint64_t runs = 0, seed = 1;
  std::vector<std::string> corpus = {""};
  for (int i = 1; i < argc; ++i) {
    std::string argument = argv[i];
    bool has_value = i + 1 < argc;
    if (argument == "--seconds" && has_value) {
      seconds = std::atof(argv[++i]);
    } else if (argument == "--runs" && has_value) {
      runs = std::strtoull(argv[++i], nullptr, 10);
    } else if (argument == "--seed" && has_value) {
      seed = std::strtoull(argv[++i], nullptr, 10);
    } else if (fs::is_directory(argument)) {
      for (const auto& entry : fs::directory_iterator(argument)) addFile(corpus, entry.path());
    } else if (fs::is_regular_file(argument)) {
      addFile(corpus, argument);
    } else {
      std::fprintf(stderr, "usage: %s [--seconds N] [--runs N] [--seed N] FILE-OR-FOLDER...\n",
                   argv[0]);
      return 2;
    }
  }
  for (int signal_number : {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE})
    std::signal(signal_number, keepInput);

  for (const std::string& input : corpus) tryInput(input);
  Mutator mutator(corpus, seed);
  auto end = std::chrono::steady_clock::now() +
             std::chrono::duration_cast<std::chrono::nanoseconds>(
                 std::chrono::duration<double>(seconds));
  uint64_t done = 0;
  while (done < runs || std::chrono::steady_clock::now() < end) {
    tryInput(mutator.next());
    ++done;
  }
  std::printf("%zu inputs of the corpus and %llu others, seed %llu\n", corpus.size(),
              static_cast<unsigned long long>(done), static_cast<unsigned long long>(seed));
  return 0;
}
