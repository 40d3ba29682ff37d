// The ring in Python: classes Ring, RingWriter, RingReader and the errors of lmcleaner_ext.errors.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <memory>
#include <optional>
#include <utility>

#include "store/error.h"
#include "store/ring.h"
#include "store/stream.h"

namespace py = pybind11;

namespace lmcleaner::store {
namespace {

using Release = py::call_guard<py::gil_scoped_release>;
using Address = std::pair<std::uintptr_t, std::uint64_t>;  // pointer, bytes
using EntryTuple =
    std::tuple<std::int64_t, std::uint64_t, std::uint64_t, std::uint32_t>;  // step, slot, generation, lineage

// Raises the Python class of the same meaning. The classes live in Python, where users catch them.
void raise(const Error& error) {
    if (error.kind == ErrorKind::system) {
        errno = int(error.first);
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, error.what());
        return;
    }
    const py::module_ errors = py::module_::import("lmcleaner_ext.errors");
    auto set = [&](const char* name, auto... arguments) {
        const py::object type = errors.attr(name);
        PyErr_SetObject(type.ptr(), type(arguments...).ptr());
    };
    switch (error.kind) {
        case ErrorKind::corrupt:
            return set("LogCorruptError", error.first, error.second, error.what());
        case ErrorKind::no_space:
            return set("LogNoSpaceError", error.first, error.second);
        case ErrorKind::write:
            return set("LogWriteError", error.what());
        case ErrorKind::truncated:
            return set("LogTruncatedError", error.what());
        case ErrorKind::locked:
            return set("LogLockedError", error.first);
        case ErrorKind::overwritten:
            return set("SlotOverwrittenError", error.first);
        case ErrorKind::scrubbed:
            return set("ScrubbedStepError", error.first);
        case ErrorKind::version:
            return set("LogVersionError", error.what(), error.detail);
        case ErrorKind::insecure_permissions:
            return set("InsecurePermissionsError", error.what(), error.first);
        case ErrorKind::format:
        case ErrorKind::system:
            return set("LogFormatError", error.what());
    }
}

Durability durability_named(const std::string& name) {
    if (name == "step") return Durability::step;
    if (name == "group") return Durability::group;
    if (name == "process") return Durability::process;
    throw std::invalid_argument("durability must be 'step', 'group' or 'process', not '" + name + "'");
}

const char* name_of(Durability durability) {
    switch (durability) {
        case Durability::step:
            return "step";
        case Durability::group:
            return "group";
        case Durability::process:
            break;
    }
    return "process";
}

template <std::size_t size>
std::array<unsigned char, size> exactly(const std::string& bytes, const char* name) {
    if (bytes.size() != size)
        throw std::invalid_argument(std::string(name) + " must have " + std::to_string(size) + " bytes");
    std::array<unsigned char, size> array;
    std::copy(bytes.begin(), bytes.end(), array.begin());
    return array;
}

template <std::size_t size>
py::bytes bytes_of(const std::array<unsigned char, size>& array) {
    return py::bytes(reinterpret_cast<const char*>(array.data()), size);
}

std::unique_ptr<RingWriter> create(const std::string& path, const py::bytes& manifest,
                                   const std::vector<std::uint64_t>& section_bytes, std::uint64_t capacity,
                                   std::optional<std::uint64_t> spare, std::uint64_t metadata_bytes,
                                   const std::string& durability, std::uint32_t group, const py::bytes& run_uuid,
                                   const py::bytes& fingerprint) {
    RingOptions options;
    options.manifest = std::string(manifest);
    options.section_capacity = section_bytes;
    options.capacity = capacity;
    options.durability = durability_named(durability);
    options.group = group;
    options.spare = spare.value_or(options.durability == Durability::group ? group : 1);
    options.metadata_capacity = metadata_bytes;
    options.run_uuid = exactly<16>(std::string(run_uuid), "run_uuid");
    options.fingerprint = exactly<32>(std::string(fingerprint), "fingerprint");
    py::gil_scoped_release release;
    return RingWriter::create(path, options);
}

std::uint64_t append(RingWriter& ring, std::int64_t step, std::uint32_t lineage, const py::bytes& metadata,
                     const std::vector<Address>& sections, unsigned threads) {
    const std::string_view meta = metadata;
    std::vector<RingWriter::Bytes> parts;
    for (const auto& [address, size] : sections)
        parts.emplace_back(reinterpret_cast<const unsigned char*>(address), size);
    py::gil_scoped_release release;
    return ring.append(step, lineage, {reinterpret_cast<const unsigned char*>(meta.data()), meta.size()}, parts,
                       threads);
}

std::vector<EntryTuple> refresh(RingReader& ring) {
    std::vector<EntryTuple> entries;
    for (const Entry& entry : ring.refresh().entries)
        if (!entry.scrubbed) entries.emplace_back(entry.step, entry.slot, entry.generation, entry.lineage);
    return entries;
}

Address section(const RingReader& ring, std::uint64_t slot, std::uint64_t generation, std::size_t k) {
    const RingReader::View view = ring.section(slot, generation, k);
    return {reinterpret_cast<std::uintptr_t>(view.data), view.size};
}

std::pair<int, std::uint64_t> place(const RingReader& ring, std::uint64_t slot, std::size_t k) {
    const RingReader::Place place = ring.place(slot, k);
    return {place.descriptor, place.offset};
}

void verify(const RingReader& ring, const std::vector<std::uint64_t>& slots,
            const std::vector<std::uint64_t>& generations, std::size_t k, std::uint64_t begin, std::uint64_t end,
            unsigned threads, const std::vector<std::uintptr_t>& copies) {
    std::vector<const unsigned char*> places;
    for (const std::uintptr_t address : copies) places.push_back(reinterpret_cast<const unsigned char*>(address));
    ring.verify(slots, generations, k, begin, end, threads, places);
}

// The low halves of the checksums of `covered` bytes at the beginning of each record, seeded by its number.
void record_checksums(std::uintptr_t records, std::uint64_t count, std::uint64_t stride, std::uint64_t covered,
                      std::uint64_t first, std::uintptr_t out) {
    const auto* data = reinterpret_cast<const unsigned char*>(records);
    auto* sums = reinterpret_cast<std::uint32_t*>(out);
    for (std::uint64_t i = 0; i < count; ++i) sums[i] = std::uint32_t(checksum(data + i * stride, covered, first + i));
}

std::vector<std::uintptr_t> next_panel(PanelStream& stream) {
    std::vector<std::uintptr_t> addresses;
    for (const unsigned char* place : stream.next()) addresses.push_back(reinterpret_cast<std::uintptr_t>(place));
    return addresses;
}

class Lease {
  public:
    Lease(RingReader& ring, const std::vector<std::uint64_t>& slots, const std::vector<std::uint64_t>& generations)
        : ring_(ring), slots_(slots) {
        ring.lease(slots, generations);
    }
    ~Lease() { release(); }
    void release() { ring_.release(std::exchange(slots_, {})); }

  private:
    RingReader& ring_;
    std::vector<std::uint64_t> slots_;
};

py::bytes metadata(const RingReader& ring, std::uint64_t slot, std::uint64_t generation) {
    std::string bytes;
    {
        py::gil_scoped_release release;
        bytes = ring.metadata(slot, generation);
    }
    return py::bytes(bytes);
}

}  // namespace
}  // namespace lmcleaner::store

void bind_store(py::module_& module) {
    using namespace lmcleaner::store;
    py::register_local_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const Error& error) {
            raise(error);
        }
    });

    py::class_<lmcleaner::VectorChecks>(module, "VectorChecks", "Opaque: see RingReader.chunk_checks.");
    module.def(
        "checksum",
        [](std::uintptr_t data, std::uint64_t size, std::uint64_t seed) {
            return lmcleaner::checksum(reinterpret_cast<const void*>(data), size, seed);
        },
        py::arg("data"), py::arg("size"), py::arg("seed"), Release(), "XXH3-64 of `size` bytes at an address.");
    module.def("record_checksums", &record_checksums, py::arg("records"), py::arg("count"), py::arg("stride"),
               py::arg("covered"), py::arg("first"), py::arg("out"), Release(),
               "The low 32 bits of XXH3-64 of the first bytes of each record, seeded by its number.");

    py::class_<Ring> ring(module, "Ring",
                          "One file that keeps the last `capacity` steps of a run; see docs/log-format.md.");
    py::class_<RingWriter, Ring> writer(module, "RingWriter", "The single writer of a ring.");
    py::class_<RingReader, Ring> reader(module, "RingReader", "A reader; any number may read beside the writer.");

    ring.def_static("create", &create, py::arg("path"), py::arg("manifest"), py::arg("section_bytes"),
                    py::arg("capacity"), py::arg("spare") = py::none(), py::arg("metadata_bytes") = 65536,
                    py::arg("durability") = "group", py::arg("group") = 16,
                    py::arg("run_uuid") = py::bytes(std::string(16, '\0')),
                    py::arg("fingerprint") = py::bytes(std::string(32, '\0')),
                    "A new ring, allocated in full, mode 0600. `spare` slots beyond the capacity: 1, or `group` with "
                    "durability 'group', unless given.")
        .def_static("open_write", &RingWriter::open, py::arg("path"), Release(),
                    "Resumes writing. Steps that a power cut tore are dropped: see `dropped`.")
        .def_static("open_read", &RingReader::open, py::arg("path"), Release())
        .def_property_readonly("path", &Ring::path)
        .def(
            "manifest", [](const Ring& self) { return py::bytes(self.manifest()); }, "The bytes given to create().")
        .def_property_readonly("run_uuid", [](const Ring& self) { return bytes_of(self.superblock().run_uuid); })
        .def_property_readonly("fingerprint", [](const Ring& self) { return bytes_of(self.superblock().fingerprint); })
        .def_property_readonly("capacity", [](const Ring& self) { return self.superblock().capacity; })
        .def_property_readonly("slots", [](const Ring& self) { return self.superblock().slot_count; })
        .def_property_readonly("slot_bytes", [](const Ring& self) { return self.superblock().slot_stride; })
        .def_property_readonly("file_bytes", [](const Ring& self) { return self.superblock().file_size; })
        .def_property_readonly("metadata_bytes", [](const Ring& self) { return self.superblock().metadata_capacity; })
        .def_property_readonly("section_bytes",
                               [](const Ring& self) {
                                   const auto& sizes = self.superblock().section_capacity;
                                   return std::vector<std::uint64_t>(sizes.begin(),
                                                                     sizes.begin() + self.superblock().section_count);
                               })
        .def_property_readonly("durability", [](const Ring& self) { return name_of(self.superblock().durability); })
        .def_property_readonly("group", [](const Ring& self) { return self.superblock().group; })
        .def_property_readonly("version",
                               [](const Ring& self) {
                                   return std::to_string(self.superblock().major) + "." +
                                          std::to_string(self.superblock().minor);
                               })
        .def_property_readonly("intact_superblocks", &Ring::intact_superblocks);

    writer
        .def("append", &append, py::arg("step"), py::arg("lineage"), py::arg("metadata"), py::arg("sections"),
             py::arg("threads") = 1, "Writes one step from (address, bytes) pairs and returns its slot.")
        .def("rewind", &RingWriter::rewind, py::arg("step"), Release(),
             "Durably frees all steps >= `step` and returns the new lineage.")
        .def("sync", &RingWriter::sync, Release())
        .def("scrub", &RingWriter::scrub, py::arg("steps"), Release(),
             "Overwrites the contents of these steps, and of slots that hold none, with zeros, durably. Returns the "
             "bytes.")
        .def("close", &RingWriter::close, Release())
        .def_property_readonly("last_step", &RingWriter::last_step, "-1: none")
        .def_property_readonly("durable_step", &RingWriter::durable_step, "The newest step that survives a power cut.")
        .def_property_readonly("lineage", &RingWriter::lineage)
        .def_property_readonly("direct", &RingWriter::direct, "Whether large writes bypass the page cache (O_DIRECT).")
        .def_property(
            "lease_wait", [](const RingWriter& self) { return self.lease_wait.load(); },
            [](RingWriter& self, double seconds) { self.lease_wait = seconds; },
            "Seconds that an append waits for readers' leases on the slot it overwrites, 60 unless set.")
        .def_property_readonly("dropped", &RingWriter::dropped, "Steps that open_write found torn and gave up.");

    py::class_<PanelStream>(module, "PanelStream",
                            "One 1 MiB chunk of each of several steps at a time, past the page cache, read ahead.")
        .def(py::init<const RingReader&, std::vector<std::uint64_t>, std::vector<std::uint64_t>, std::size_t,
                      unsigned>(),
             py::arg("ring"), py::arg("slots"), py::arg("generations"), py::arg("k"), py::arg("threads"),
             py::keep_alive<1, 2>(), Release())
        .def("next", &next_panel, Release(),
             "Addresses of the next chunk of each step, verified; [] after the last. Valid until the next call.")
        .def_property_readonly("direct", &PanelStream::direct);

    reader.def("refresh", &refresh, Release(), "The readable steps, ascending: (step, slot, generation, lineage).")
        .def("scrubbed_steps", &RingReader::scrubbed_steps, Release(),
             "Retained steps whose contents were overwritten, as the last refresh() saw them.")
        .def(
            "damaged_slots", [](RingReader& self) { return self.refresh().damaged; }, Release(),
            "Slots whose header fails its checksum.")
        .def(
            "section", &section, py::arg("slot"), py::arg("generation"), py::arg("k"), Release(),
            "(address, bytes) of vector section `k`, within a mapping that lives as long as this object. Not verified.")
        .def("metadata", &metadata, py::arg("slot"), py::arg("generation"), "The metadata of a step, verified.")
        .def("place", &place, py::arg("slot"), py::arg("k"), "(file descriptor, offset) of vector section `k`.")
        .def("verify", &verify, py::arg("slots"), py::arg("generations"), py::arg("k"), py::arg("begin"),
             py::arg("end"), py::arg("threads") = 0, py::arg("copies") = std::vector<std::uintptr_t>(), Release(),
             "Checks the chunks of section `k` that overlap bytes [begin, end) in each slot. threads 0: one per core. "
             "copies: addresses, one per slot, of copies of these bytes, checked in the place of the mapped ones; they "
             "begin and end where chunks do, or pages at the section's end.")
        .def("chunk_checks", &RingReader::chunk_checks, py::arg("slots"), py::arg("generations"), py::arg("k"),
             Release(), py::keep_alive<0, 1>(),  // they point into the mapping
             "What verify() would check, for a kernel that reads section `k` anyway.")
        .def("check", &RingReader::check, py::arg("slots"), py::arg("generations"), Release(),
             "Raises SlotOverwrittenError if a slot no longer holds its generation.")
        .def("advise", &RingReader::advise, py::arg("slot"), py::arg("k"), py::arg("begin"), py::arg("end"), Release(),
             "Asks the kernel to read these bytes ahead.")
        .def(
            "lease",
            [](RingReader& self, const std::vector<std::uint64_t>& slots,
               const std::vector<std::uint64_t>& generations) {
                return std::make_unique<Lease>(self, slots, generations);
            },
            py::arg("slots"), py::arg("generations"), py::keep_alive<0, 1>(), Release(),
            "Makes the writer wait (RingWriter.lease_wait at most) before it overwrites these slots. Raises "
            "SlotOverwrittenError.");
    py::class_<Lease>(module, "Lease", "Leased slots, until release() or until nobody refers to it any more.")
        .def("release", &Lease::release)
        .def("__enter__", [](Lease& self) -> Lease& { return self; })
        .def("__exit__", [](Lease& self, const py::args&) { self.release(); });
}
