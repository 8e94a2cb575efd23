import PhotosUI
import SwiftUI
import TinyViTKit

/// The only screen.
struct ContentView: View {
    @Bindable var model: ClassifierModel
    @State private var photo: PhotosPickerItem?
    @State private var cameraWanted = false
    @State private var report: URL?

    /// What has to be loaded again when it changes.
    private struct Choice: Equatable {
        let bundle: URL?
        let units: ComputeUnits
    }

    var body: some View {
        NavigationStack {
            Form {
                pickers
                input
                Section("Predictions") { ForEach(model.predictions, id: \.label, content: bar) }
                TimesSection(timings: model.timings)
                ParitySection(parity: model.parity, ready: model.ready) {
                    Task { await model.checkParity() }
                }
                share
            }
            .navigationTitle("TinyViT Edge")
        }
        .onAppear { model.findBundles() }
        .task(id: Choice(bundle: model.selected, units: model.units)) { await model.load() }
        .task(id: cameraWanted) {
            if cameraWanted {
                await model.runCamera()
                cameraWanted = false
            }
        }
        .onChange(of: photo) { _, chosen in
            Task {
                if let data = try? await chosen?.loadTransferable(type: Data.self) {
                    await model.classify(photo: data)
                } else if chosen != nil {
                    model.error = "photo: not readable; choose another"
                }
            }
        }
        .alert(
            model.error ?? "",
            isPresented: Binding(get: { model.error != nil }, set: { if !$0 { model.error = nil } })
        ) {
            Button("OK") {}
        }
    }

    private var pickers: some View {
        Section {
            Picker("Model", selection: $model.selected) {
                ForEach(model.bundles, id: \.self) { url in
                    Text(url.lastPathComponent).tag(Optional(url))
                }
            }
            Picker("Runs on", selection: $model.units) {
                ForEach(ComputeUnits.allCases) { Text($0.label).tag($0) }
            }
            if model.takesImages {
                Picker("Pixels", selection: $model.path) {
                    Text("Exact").tag(PixelPath.exact)
                    Text("Vision").tag(PixelPath.vision)
                }
                .pickerStyle(.segmented)
            }
        }
    }

    private var input: some View {
        Section {
            if model.cameraRuns {
                CameraPreview(session: model.camera.session).aspectRatio(1, contentMode: .fit)
            }
            Button(cameraWanted ? "Stop camera" : "Camera") { cameraWanted.toggle() }
                .disabled(!model.ready)
            // The system's picker: it hands over one photo, without access to the others.
            PhotosPicker("Choose photo", selection: $photo, matching: .images)
                .disabled(!model.ready)
        }
    }

    private var share: some View {
        Section {
            Button("Write report") { report = model.writeReport() }.disabled(!model.ready)
            if let report { ShareLink(item: report) }
        }
    }

    private func bar(_ prediction: Prediction) -> some View {
        ProgressView(value: min(max(prediction.probability, 0), 1)) {
            HStack {
                Text(prediction.label)
                Spacer()
                Text(prediction.probability, format: .percent.precision(.fractionLength(1)))
            }
        }
    }
}

private struct TimesSection: View {
    let timings: Timings

    var body: some View {
        Section("Milliseconds") {
            Grid(alignment: .trailing) {
                GridRow {
                    Text("")
                    ForEach(["first", "median", "p90", "calls"], id: \.self) { Text($0) }
                }
                GridRow {
                    Text("load")
                    Text(milliseconds(timings.loadMs))
                }
                row("preprocess", timings.preprocess.summary)
                row("inference", timings.inference.summary)
            }
            .monospacedDigit()
        }
    }

    private func row(_ name: String, _ latency: Latency?) -> some View {
        GridRow {
            Text(name)
            Text(milliseconds(latency?.first))
            Text(milliseconds(latency?.median))
            Text(milliseconds(latency?.p90))
            Text(latency?.count ?? 0, format: .number)
        }
    }

    private func milliseconds(_ value: Double?) -> String {
        value.map { $0.formatted(.number.precision(.fractionLength(2))) } ?? "-"
    }
}

/// Red where a golden photo came out differently, with every difference.
private struct ParitySection: View {
    let parity: Parity
    let ready: Bool
    let check: () -> Void

    var body: some View {
        Section {
            Button("Check parity", action: check).disabled(!ready || parity == .running)
            switch parity {
            case .notRun: EmptyView()
            case .running: ProgressView()
            case .passed(let result):
                Label("All \(result.verdicts.count) photos as recorded", systemImage: "checkmark")
            case .failed(let result):
                Label("Parity FAILED", systemImage: "xmark.octagon.fill").foregroundStyle(.red)
                ForEach(result.verdicts, id: \.name) { verdict in
                    ForEach(verdict.problems, id: \.self) { problem in
                        Text("\(verdict.name): \(problem)").foregroundStyle(.red)
                    }
                }
            }
        }
    }
}
