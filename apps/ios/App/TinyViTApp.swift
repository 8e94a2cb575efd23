import SwiftUI

@main
struct TinyViTApp: App {
    @State private var model = ClassifierModel()

    var body: some Scene {
        WindowGroup { ContentView(model: model) }
    }
}
